#
# Ansible managed
#
# templates/monitoring/take.sh.j2: run what is wanted, with the files that are there; says what it changed.
set -eu
# The moment, in seconds, at which a unit began to run as it does; 0 where it does not.
begun() {
  at=$(systemctl show -p ActiveEnterTimestamp --value "$1")
  if systemctl is-active --quiet "$1" && [ -n "$at" ]; then date -d "$at" +%s; else echo 0; fi
}
# Run a unit that reads these files: start it, or restart it when one of them is not older than it.
run() {
  unit=$1
  shift
  if ! systemctl is-enabled --quiet "$unit" 2>/dev/null; then
    systemctl enable "$unit" 2>&1
    echo "changed: enabled $unit"
  fi
  newest=$(stat -c %Y "$@" | sort -n | tail -n 1)
  if [ "$(begun "$unit")" -le "$newest" ]; then
    # Within one second nobody can tell which came first: begin in the next one.
    [ "$(date +%s)" -gt "$newest" ] || sleep 1
    systemctl restart "$unit"
    echo "changed: $unit runs with what is there"
  fi
}
systemctl daemon-reload
run logrotate.timer /etc/systemd/system/logrotate.timer.d/50-provision.conf
newest=$(stat -c %Y /etc/systemd/journald.conf.d/50-provision.conf)
if [ "$(begun systemd-journald.service)" -le "$newest" ]; then
  [ "$(date +%s)" -gt "$newest" ] || sleep 1
  systemctl restart systemd-journald.service
  echo "changed: systemd-journald.service runs with what is there"
fi
