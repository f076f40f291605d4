#
# Ansible managed
#
# templates/postgresql/make-cluster.sh.j2: change postgresql_version, postgresql_port or postgresql_locale.
set -eu
if [ -e /etc/provision/cluster-being-made ]; then
  aside=/var/lib/postgresql/half-made-$(date +%s)
  mkdir -m 0700 "$aside"
  [ ! -e /etc/postgresql/14/main ] || mv /etc/postgresql/14/main "$aside/configuration"
  [ ! -e /var/lib/postgresql/14/main ] || mv /var/lib/postgresql/14/main "$aside/data"
fi
mkdir -p /etc/provision
touch /etc/provision/cluster-being-made
pg_createcluster --port=5432 --encoding=UTF8 --locale=C.UTF-8 \
  14 main -- --data-checksums
rm /etc/provision/cluster-being-made
