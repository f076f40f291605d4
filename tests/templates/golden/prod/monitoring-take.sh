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
# A unit can be started and die at once, for example when somebody else has its port.
answers() {
  for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    if systemctl is-active --quiet "$1" && [ -n "$(ss -Hltn "sport = :$2")" ]; then return 0; fi
    sleep 0.25
  done
  echo "$1 does not listen on port $2: $(journalctl -u "$1" -n 1 -o cat)" >&2
  exit 1
}
systemctl daemon-reload
run logrotate.timer /etc/systemd/system/logrotate.timer.d/50-provision.conf
newest=$(stat -c %Y /etc/systemd/journald.conf.d/50-provision.conf)
if [ "$(begun systemd-journald.service)" -le "$newest" ]; then
  [ "$(date +%s)" -gt "$newest" ] || sleep 1
  systemctl restart systemd-journald.service
  echo "changed: systemd-journald.service runs with what is there"
fi
run prometheus-node-exporter.service /etc/systemd/system/prometheus-node-exporter.service.d/50-provision.conf /etc/provision/exporters.yml
run prometheus-postgres-exporter.service /etc/systemd/system/prometheus-postgres-exporter.service.d/50-provision.conf /etc/provision/exporters.yml
answers prometheus-node-exporter.service 9100
answers prometheus-postgres-exporter.service 9187
run provision-metrics.timer /etc/systemd/system/provision-metrics.timer
# The first figures at once, so that the first scrape finds them.
if [ ! -s /var/lib/provision-metrics/provision.prom ]; then
  systemctl start provision-metrics.service
  echo "changed: wrote the first figures"
fi
