#
# Ansible managed
#
# templates/maintenance/timers.sh.j2: enable the timers that have a schedule, disable the others; says what it changed.
set -eu
systemctl daemon-reload
switch() {
  now=$(systemctl is-enabled "$2" 2>/dev/null || true)
  running=$(systemctl is-active "$2" 2>/dev/null || true)
  case "$1 $now $running" in
    'enable enabled active' | 'disable disabled inactive') ;;
    *) systemctl "$1" --now "$2" 2>&1; echo "changed: $1 $2" ;;
  esac
}
switch disable provision-maintain-sessions.timer
switch disable provision-maintain-retention.timer
switch disable provision-maintain-index.timer
