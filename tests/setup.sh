#!/bin/sh
# Installs the Debian packages that the tests drive: a DNS server, PostgreSQL, etcd, a TLS proxy to compare with,
# and strace, which makes disks slow.
# Go, for the tests with Network Service Mesh's code, is newer than Debian's: it is there or those tests are skipped.
# Nothing else is downloaded, nothing is started, and running it again changes nothing.
#
#   tests/setup.sh           install what is missing (as root, or through sudo)
#   tests/setup.sh --check   only tell what is missing; exit 1 if something is
set -eu

# package : the program that shows it is there
wanted='
knot:knotd
knot-dnsutils:kdig
postgresql:postgres
postgresql-client:psql
postgresql-contrib:pgbench
haproxy:haproxy
etcd-server:etcd
etcd-client:etcdctl
iproute2:ip
openssl:openssl
curl:curl
strace:strace
'

PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
# Debian keeps PostgreSQL's own programs out of PATH.
for dir in /usr/lib/postgresql/*/bin; do
    [ -d "$dir" ] && PATH="$PATH:$dir"
done

missing=''
for entry in $wanted; do
    package=${entry%%:*} program=${entry##*:}
    if command -v "$program" >/dev/null 2>&1; then
        echo "$package: present"
    else
        missing="$missing $package"
    fi
done
[ -n "$missing" ] || exit 0

if [ "${1:-}" = --check ]; then
    for package in $missing; do echo "$package: missing"; done
    exit 1
fi
if ! command -v apt-get >/dev/null 2>&1; then
    echo "this is no Debian system; the tests that need them are skipped without:$missing"
    exit 0
fi
if [ "$(id -u)" = 0 ]; then
    sudo=''
elif sudo -n true 2>/dev/null; then
    sudo='sudo -n'
else
    echo "neither root nor sudo; the tests that need them are skipped without:$missing"
    echo "to install them: sudo apt-get install --no-install-recommends$missing"
    exit 0
fi

# Services must neither start now nor at the next boot: the tests start their own, in their own namespaces.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | $sudo tee "$policy" >/dev/null
    $sudo chmod 755 "$policy"
    trap '$sudo rm -f "$policy"' EXIT INT TERM
fi

log=$(mktemp)
if ! {
    $sudo apt-get update -qq &&
        $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing
} >"$log" 2>&1; then
    cat "$log" >&2
    rm -f "$log"
    echo "could not install:$missing" >&2
    exit 1
fi
rm -f "$log"
for package in $missing; do
    echo "$package: installed"
    case $package in
    knot | postgresql | haproxy | etcd-server)
        # etcd-server's unit is etcd.service.
        if [ -d /run/systemd/system ]; then $sudo systemctl disable --quiet --now "${package%-server}" || true; fi
        ;;
    esac
done
