#
# Ansible managed
#
# templates/backup/key.sh.j2: the key with which this host's postgres reaches the repository; the private half never leaves.
set -eu
umask 077
if [ ! -s /etc/pgbackrest/ssh/id_ed25519.pub ]; then
  install -d -o postgres -g postgres -m 0755 /etc/pgbackrest/ssh
  rm -f /etc/pgbackrest/ssh/id_ed25519
  runuser -u postgres -- ssh-keygen -q -t ed25519 -N '' -C 'postgres@db1' -f /etc/pgbackrest/ssh/id_ed25519
  echo made >&2
fi
cat /etc/pgbackrest/ssh/id_ed25519.pub
