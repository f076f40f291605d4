#
# Ansible managed
#
# templates/postgresql/read-source.sh.j2: reads the source of postgresql_repository; a doubt of apt's is a failure here.
set -eu
export LC_ALL=C
only() { apt-get -q -o Dir::Etc::SourceList=/etc/apt/sources.list.d/provision-postgresql.sources -o Dir::Etc::SourceParts=/dev/null -o APT::Get::List-Cleanup=0 -o Acquire::Retries=2 "$@"; }
only update --error-on=any >/dev/null
if [ -z "$(only indextargets --format '$(FILENAME)' 'Created-By: Packages')" ]; then
  echo "E: the suite doesn't have the component main" >&2
  exit 1
fi
