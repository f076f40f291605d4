"""What a host should be: one typed description, built and judged on the controller, read everywhere."""
