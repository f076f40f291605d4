"""What a database host may do on the backup host: the command of its SSH key, and how sshd treats the accounts.

Text only; standard library only. The boundary between two stanzas is the operating system: pgBackRest's remote protocol
reads and writes any path that its account can, whatever stanza and path the command line names. The command keeps a key
from pgBackRest's other commands, whose options run programs, and from a shell.
"""

from __future__ import annotations

PATH = "/usr/local/lib/provision/repository"
KEYS = "/etc/ssh/provision-keys"
SSHD = "/etc/ssh/sshd_config.d/50-provision-repository.conf"
LOCKS = "/var/lib/provision/repository"
MEMBERS = "provision-repository"
"""Group of the accounts: it may enter the repository, in which each account can read its own stanza alone."""
LIMITS = "/etc/security/limits.d/50-provision-repository.conf"

READING = ("archive-get", "info", "manifest", "repo-get", "repo-ls", "restore", "verify")
WRITING = ("annotate", "archive-push", "backup", "check", "expire", "stanza-create", "stanza-upgrade")
FREE = (
    "archive-async", "beta", "buffer-size", "compress-level-network", "db-timeout", "exec-id", "io-timeout", "lock",
    "log-level-console", "log-level-file", "log-level-stderr", "log-timestamp", "pg1-database", "pg1-path", "pg1-port",
    "pg1-socket-path", "pg1-user", "pg1-version-force", "priority", "process", "protocol-timeout", "sck-block",
    "sck-keep-alive", "tcp-keep-alive-count", "tcp-keep-alive-idle", "tcp-keep-alive-interval",
)  # fmt: skip
"""Options that pgBackRest sends and that name no program, host, configuration or directory of the backup host."""

COMMAND = rf"""#!/bin/sh
# Placed by provision. The only command of a database host's SSH key: the space that is left, and pgBackRest's remote
# protocol, with the verbs and options below. The arguments come from the key's line: repository, stanza.
# shellcheck disable=SC2194  # a constant word: whether a list has an element
set -fu
path=$1 own=$2 lock={LOCKS}/$(id -un) stanza="" verb=""
refuse() {{ printf 'refused: %s\n' "$1" | tr -c '[:print:]\n' '?' >&2; exit 1; }}
[ "${{SSH_ORIGINAL_COMMAND:-}}" != space ] || exec df -B1 --output=avail "$path"
# shellcheck disable=SC2086  # words, without patterns (set -f)
set -- ${{SSH_ORIGINAL_COMMAND:-}}
[ $# -gt 1 ] || refuse "${{SSH_ORIGINAL_COMMAND:-a shell}}"
[ "$1" = pgbackrest ] || [ "$1" = /usr/bin/pgbackrest ] || refuse "$1"
shift
for word do
  # pgBackRest sends plain words: no path that leads upwards, no character of a shell, nothing that does not print.
  case $word in *..* | *[!A-Za-z0-9_.,:/=@+-]*) refuse "$word" ;; esac
  case $word in
    --stanza=*) [ -z "$stanza" ] || refuse "$word"; stanza=${{word#*=}} ;;
    --repo1-path=*) [ "${{word#*=}}" = "$path" ] || refuse "$word" ;;
    --remote-type=repo | --repo=1) ;;
    --*)
      name=${{word%%=*}} name=${{name#--}}
      case " {" ".join(FREE)} " in *" ${{name#no-}} "*) ;; *) refuse "$word" ;; esac ;;
    *:remote) [ -z "$verb" ] || refuse "$word"; verb=${{word%:remote}} ;;
    *) refuse "$word" ;;
  esac
done
case " {" ".join(READING)} " in
  *" $verb "*) ;;
  *) case " {" ".join(WRITING)} " in *" $verb "*) ;; *) refuse "${{verb:-no verb}}" ;; esac
     [ "$stanza" = "$own" ] || refuse "$verb for stanza ${{stanza:-(none)}}" ;;
esac
case $stanza in "" | .* | *[!A-Za-z0-9_.-]*) refuse "stanza ${{stanza:-(none)}}" ;; esac
umask 027
# Each account has its own, since the directory of locks that the first account makes is closed to others.
export PGBACKREST_LOCK_PATH="$lock"
exec pgbackrest "$@"
"""

CONFIGURATION = f"""# Placed by provision: accounts of database hosts, whose keys belong to root.
Match User pgbackrest,pgbackrest-*
  AuthorizedKeysFile {KEYS}/%u
  AuthenticationMethods publickey
  PasswordAuthentication no
  KbdInteractiveAuthentication no
  HostbasedAuthentication no
  DisableForwarding yes
  PermitTTY no
  PermitUserRC no
  PermitTunnel no
Match all
"""

PROCESSES = f"""# Placed by provision: no database host takes every process of the backup host. A session has three.
@{MEMBERS} hard nproc 512
"""
