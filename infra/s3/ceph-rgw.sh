#!/usr/bin/env bash
# A real S3 server on 127.0.0.1 for tests and trials: Ceph's RADOS gateway on one node.
#
#   ceph-rgw.sh start DIR [PORT]   make the store in DIR (first time) and serve S3 on PORT (default 9000)
#   ceph-rgw.sh slow  DIR PORT     a second gateway to the same data that answers 503 SlowDown to more than
#                                  SLOW (default 2) requests at once
#   ceph-rgw.sh user  DIR NAME KEY SECRET   a second account
#   ceph-rgw.sh stop  DIR          graceful, 6 to 9 s
#   ceph-rgw.sh kill  DIR          at once; what was acknowledged is safe on bluestore
#
# Needs Debian's or Ubuntu's packages ceph-mon, ceph-osd, radosgw and curl; no root, no systemd, no container.
# PORT, PORT+1 and PORT+2 must be free. Keep DIR short: admin sockets may have 107 characters.
#
# Environment: S3_KEY, S3_SECRET (default testkey, testsecret0123456789); STORE=bluestore (default, survives
# kill -9) or memstore (in memory); TLS_CERT, TLS_KEY (absolute paths) for https; OWNER=PID to have the
# server killed when that process is gone.
set -euo pipefail

command=$1
mkdir -p "$2"
dir=$(cd "$2" && pwd)
port=${3:-9000}
store=${STORE:-bluestore}
key=${S3_KEY:-testkey}
secret=${S3_SECRET:-testsecret0123456789}
export CEPH_CONF=$dir/ceph.conf

frontend() { # tcp_nodelay: without it each small answer waits 40 ms
  if [ -n "${TLS_CERT:-}" ]; then
    echo "beast ssl_endpoint=127.0.0.1:$1 ssl_certificate=$TLS_CERT ssl_private_key=$TLS_KEY tcp_nodelay=1"
  else
    echo "beast endpoint=127.0.0.1:$1 tcp_nodelay=1"
  fi
}

wait_until_it_answers() {
  for _ in $(seq 6000); do
    curl -sko /dev/null "http${TLS_CERT:+s}://127.0.0.1:$1/" && return
    sleep 0.05
  done
  echo "ceph-rgw.sh: no answer on port $1 after 5 minutes; see $dir/log" >&2
  return 1
}

configure() {
  local fsid addresses
  fsid=$(cat /proc/sys/kernel/random/uuid)
  addresses="[v2:127.0.0.1:$((port + 1)),v1:127.0.0.1:$((port + 2))]"
  cat >"$CEPH_CONF" <<CONF
[global]
fsid = $fsid
mon host = $addresses
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind ipv6 = false
# No cephx on a loopback store; the gateway hangs for ever unless these two then say crc.
auth cluster required = none
auth service required = none
auth client required = none
ms mon client mode = crc
ms client mode = crc
run dir = $dir/run
admin socket = $dir/run/\$name.asok
pid file = $dir/run/\$name.pid
log file = $dir/log/\$name.log
crash dir = $dir/log
mon data = $dir/mon
osd data = $dir/osd
keyring = $dir/keyring
# One copy, one placement group a pool, no manager daemon, and quick map changes: starts in 3 s, not 12.
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon max pg per osd = 1000
mon data avail crit = 1
mon data avail warn = 2
paxos propose interval = 0.02
paxos min wait = 0.01
osd objectstore = $store
osd memory target = 939524096
bluestore block size = 10G
bluestore block preallocate file = false
memstore device bytes = 6G
[client]
rgw data = $dir/rgw
rgw enable apis = s3,admin
rgw enable usage log = false
CONF
  monmaptool --create --fsid "$fsid" --addv a "$addresses" "$dir/monmap" >/dev/null
  ceph-mon --mkfs -i a --monmap "$dir/monmap"
}

add_user() {
  timeout 300 radosgw-admin user create --uid="$1" --display-name="$1" --access-key="$2" --secret-key="$3" \
    >/dev/null 2>&1
}

pids() { cat "$dir"/run/*.pid 2>/dev/null || true; }

case $command in
start)
  mkdir -p "$dir"/{mon,osd,rgw,run,log}
  new=
  if [ ! -f "$CEPH_CONF" ]; then
    new=1
    configure
  fi
  ceph-mon -i a
  if [ -n "$new" ]; then
    timeout 300 ceph osd create >/dev/null
    ceph-osd -i 0 --mkfs >/dev/null 2>&1
  fi
  ceph-osd -i 0 >/dev/null 2>&1
  for _ in $(seq 2000); do
    timeout 60 ceph osd stat 2>/dev/null | grep -q '1 up' && break
    sleep 0.05
  done
  if [ -n "$new" ]; then add_user test "$key" "$secret"; fi
  radosgw -n client.rgw --rgw-frontends="$(frontend "$port")"
  wait_until_it_answers "$port"
  if [ -n "${OWNER:-}" ]; then
    (
      while kill -0 "$OWNER" 2>/dev/null; do sleep 2; done
      for pid in $(pids); do kill -9 "$pid" 2>/dev/null || true; done
    ) </dev/null >/dev/null 2>&1 &
  fi
  ;;
slow)
  radosgw -n client.slow --rgw-frontends="$(frontend "$port")" --rgw-max-concurrent-requests="${SLOW:-2}"
  wait_until_it_answers "$port"
  ;;
user)
  add_user "$3" "$4" "$5"
  ;;
stop)
  for name in client.slow client.rgw osd.0 mon.a; do
    file=$dir/run/$name.pid
    [ -s "$file" ] || continue
    pid=$(cat "$file")
    kill "$pid" 2>/dev/null || true
    for _ in $(seq 150); do
      kill -0 "$pid" 2>/dev/null || break
      sleep 0.1
    done
    kill -9 "$pid" 2>/dev/null || true
    rm -f "$file"
  done
  ;;
kill)
  for pid in $(pids); do kill -9 "$pid" 2>/dev/null || true; done
  rm -f "$dir"/run/*.pid
  ;;
*)
  echo "usage: ceph-rgw.sh start|slow|user|stop|kill DIR ..." >&2
  exit 2
  ;;
esac
