#!/bin/sh
# The programs the tests start themselves, each on a private port: PostgreSQL, RabbitMQ and nginx, Node for a
# recorded upstream, wrk to measure with, and espeak-ng. Installs what is missing when it may; otherwise says what to do.
set -eu

missing=""
if [ -z "${OMNIHUB_TEST_POSTGRESQL_URL:-}" ] && ! ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 \
    && ! command -v initdb >/dev/null 2>&1; then
    missing="$missing postgresql"
fi
# Debian keeps nginx where only root looks.
PATH="$PATH:/usr/sbin:/sbin"
command -v nginx >/dev/null 2>&1 || missing="$missing nginx-light"
command -v wrk >/dev/null 2>&1 || missing="$missing wrk"
command -v node >/dev/null 2>&1 || missing="$missing nodejs"
command -v npm >/dev/null 2>&1 || missing="$missing npm"
if [ -z "${OMNIHUB_TEST_AMQP_URL:-}" ] && ! [ -x /usr/lib/rabbitmq/bin/rabbitmq-server ]; then
    missing="$missing rabbitmq-server"
fi
# Without it the tests of real speech are skipped, and say so.
optional=""
command -v espeak-ng >/dev/null 2>&1 || optional=" espeak-ng"
[ -n "$missing$optional" ] || exit 0

if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "Installing$missing$optional"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    # The packages' own servers are not wanted: the tests start theirs.
    policy=/usr/sbin/policy-rc.d
    if ! [ -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod +x "$policy"
        trap 'rm -f "$policy"' EXIT
    fi
    # shellcheck disable=SC2086 # a list of words
    apt-get install -y -qq --no-install-recommends $missing $optional >/dev/null
    exit 0
fi
if [ -z "$missing" ]; then
    echo "Some tests are skipped without$optional: sudo apt-get install$optional" >&2
    exit 0
fi
echo "The tests need:$missing" >&2
echo "  Debian, Ubuntu: sudo apt-get install$missing" >&2
case "$missing" in *postgresql*)
    echo "  or name a PostgreSQL server: OMNIHUB_TEST_POSTGRESQL_URL=postgresql://user:password@host/postgres" >&2 ;;
esac
case "$missing" in *rabbitmq*)
    echo "  or name a RabbitMQ server: OMNIHUB_TEST_AMQP_URL=amqp://user:password@host/" >&2 ;;
esac
exit 1
