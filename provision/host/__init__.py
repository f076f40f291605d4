"""What pyinfra does before and after Ansible: make machines that Ansible can reach, and look at the fleet."""
