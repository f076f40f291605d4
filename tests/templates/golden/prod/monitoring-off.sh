#
# Ansible managed
#
# templates/monitoring/off.sh.j2: change monitoring_exporters. Stops what ran with our files, not an exporter of yours.
set -eu
stop() {
  [ -e "$2" ] || return 0
  if systemctl is-enabled --quiet "$1" 2>/dev/null || systemctl is-active --quiet "$1"; then
    systemctl disable --now "$1" 2>&1
    echo "changed: stopped $1"
  fi
}
stop provision-metrics.timer /etc/systemd/system/provision-metrics.timer
stop prometheus-node-exporter.service /etc/systemd/system/prometheus-node-exporter.service.d/50-provision.conf
stop prometheus-postgres-exporter.service /etc/systemd/system/prometheus-postgres-exporter.service.d/50-provision.conf
rm -f /var/lib/prometheus/node-exporter/provision.prom
