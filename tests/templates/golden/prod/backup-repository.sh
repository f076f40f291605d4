#
# Ansible managed
#
# templates/backup/repository.sh.j2: run on the repository's host. The key may run pgbackrest and ask for the space that is
# left, nothing else, without a terminal or forwarding. Prints what it changed, the version, and the host's own public keys.
set -eu
home=/var/lib/pgbackrest
changed() { echo "changed: $1"; }
if ! dpkg-query -Wf '${db:Status-Abbrev}' pgbackrest openssh-server 2>/dev/null | grep -q '^ii ii'; then
  export DEBIAN_FRONTEND=noninteractive
  wait='-o DPkg::Lock::Timeout=120'
  apt-get $wait -q update >&2
  apt-get $wait -qy install --no-install-recommends pgbackrest openssh-server >&2
  changed packages
fi
umask 077
if ! getent passwd pgbackrest >/dev/null; then
  useradd --system --user-group --home-dir "$home" --no-create-home --shell /bin/sh pgbackrest
  changed user
fi
if [ "$(stat -c '%U %a' "$home" 2>/dev/null)" != 'pgbackrest 750' ]; then
  install -d -o pgbackrest -g pgbackrest -m 0750 "$home"
  changed folder
fi
install -d -o pgbackrest -g pgbackrest -m 0700 "$home/.ssh"
# Only what pgBackRest itself asks for at the other end: its commands for people have options that run other programs.
line='command="case \"$SSH_ORIGINAL_COMMAND\" in space) exec df -B1 --output=avail /var/lib/pgbackrest ;; pgbackrest?*:remote) exec pgbackrest ${SSH_ORIGINAL_COMMAND#* } ;; *) echo refused >&2; exit 1 ;; esac",restrict ssh-ed25519 AAAA postgres@db1'
if ! grep -qxF "$line" "$home/.ssh/authorized_keys" 2>/dev/null; then
  # One key for each stanza: a host that was made anew replaces its own.
  { grep -vF ' postgres@db1' "$home/.ssh/authorized_keys" 2>/dev/null || true; printf '%s\n' "$line"; } >"$home/.ssh/new"
  chown pgbackrest: "$home/.ssh/new"
  mv "$home/.ssh/new" "$home/.ssh/authorized_keys"
  changed key
fi
conf="[global]
repo1-path=$home
log-level-file=off"
if [ "$(cat /etc/pgbackrest/pgbackrest.conf 2>/dev/null)" != "$conf" ]; then
  install -d -m 0755 /etc/pgbackrest
  printf '%s\n' "$conf" >/etc/pgbackrest/new
  chmod 0644 /etc/pgbackrest/new
  mv /etc/pgbackrest/new /etc/pgbackrest/pgbackrest.conf
  changed configuration
fi
pgbackrest version
cut -d ' ' -f 1,2 /etc/ssh/ssh_host_*_key.pub | sed 's/^/host /'
