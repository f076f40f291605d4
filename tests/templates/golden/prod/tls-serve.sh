#
# Ansible managed
#
# templates/tls/serve.sh.j2: from tls_endpoints. A service that serves no TLS yet is left to the role that configures it.
set -eu
print() { openssl x509 -noout -fingerprint -sha256 2>/dev/null || true; }
served() { timeout 10 openssl s_client -starttls postgres -connect "$1" </dev/null 2>/dev/null | print; }
ours() { timeout 10 openssl s_client -starttls postgres -connect "$1" -CAfile /etc/provision/tls/ca.crt -no_check_time -verify_return_error \
  </dev/null >/dev/null 2>&1; }
placed=$(print </etc/provision/tls/server.crt)
take() {
  systemctl is-active --quiet "$1" || return 0
  [ -n "$(served "$2")" ] || return 0
  [ "$(served "$2")" != "$placed" ] || return 0
  systemctl reload "$1"
  for _ in 1 2 3 4 5 6 7 8 9 10; do
    if [ "$(served "$2")" = "$placed" ]; then
      echo "reloaded $1"
      return 0
    fi
    sleep 0.5
  done
  # Another authority's: the service has not been told of ours yet, and the role that does so comes next.
  ours "$2" || return 0
  echo "$1 was reloaded and still serves another certificate than /etc/provision/tls/server.crt; its log says why" >&2
  exit 1
}
take postgresql@14-main.service 127.0.0.1:5432
