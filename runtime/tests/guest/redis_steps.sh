# What redis-server must survive as it does natively. Each step starts a server,
# heats it, and says what became of it. $1: "native" or "ridden".
mode=$1
mkdir -p /tmp/redis /results/$mode
cd /tmp/redis
number=0

. /usr/bin/steps.sh
run="redis $mode"

load() {
	redis-benchmark -p 7777 -t set,get,incr,lpush,hset -r 100 -n 2000 -c 8 -P 4 -q >/dev/null 2>&1
}

rides_after_load() {
	load
	[ $mode = native ] || rides $report
}

# Without load, which would write.
start_cold() { # ARGUMENTS...
	local ride=''
	number=$((number + 1))
	report=/results/$mode/server-$number.json
	[ $mode = native ] || ride="ub run --require --eager --report $report --"
	$ride redis-server --port 7777 --dir /tmp/redis --logfile /tmp/redis/log \
		--enable-debug-command yes --enable-module-command yes "$@" >server.out 2>&1 &
	server=$!
	retry 30 serves || say "does not serve"
}

start() { # ARGUMENTS...
	start_cold "$@"
	retry 30 rides_after_load || say "does not ride"
}

ended() {
	local status=0
	wait $server || status=$?
	say "$1: status $status"
}

clear() {
	rm -rf /tmp/redis/*
}

# The same data whatever the load left: known keys only.
fill() {
	cli flushall >/dev/null
	local i=0
	while [ $i -lt 200 ]; do
		echo "SET key:$i value:$i"
		echo "RPUSH list:$((i % 7)) $i"
		echo "HSET hash:$((i % 5)) field:$i $i"
		echo "ZADD sorted:$((i % 3)) $i member:$i"
		echo "SADD set:$((i % 4)) $i"
		echo "XADD stream $((i + 1))-1 field $i"
		i=$((i + 1))
	done | cli >fill.out
	say "$1: refused $(grep -c ERR fill.out), digest $(cli debug digest)"
}

killed() {
	local i
	for i in 1 2 3; do
		start --save ''
		fill "kill $i"
		cli save >/dev/null
		kill -9 $server
		ended "kill $i"
	done
	start_cold --save ''
	say "kill: digest after restart $(cli debug digest)"
	cli shutdown nosave
	ended "kill, restarted"
	clear
}

signalled() { # NAME
	start --save ''
	fill "$1"
	kill -$1 $server
	ended "$1"
	clear
}

stopped() {
	local i
	start --save ''
	for i in 1 2 3 4 5; do
		kill -STOP $server
		sleep 0.2
		kill -CONT $server
		retry 10 serves && say "stop $i: serves"
		load
	done
	fill stop
	cli shutdown nosave
	ended stop
	clear
}

crashed() {
	start --save ''
	cli debug segfault >/dev/null 2>&1 || :
	ended crash
	say "crash: report begins $(grep -c 'REDIS BUG REPORT START' log), ends $(grep -c 'REDIS BUG REPORT END' log)"
	say "crash: $(grep -o 'crashed by signal: 11, si_code: [0-9]*' log)"
	say "crash: sections $(grep -c '^------ ' log)"
	clear
}

saved() {
	local i digest
	start --save ''
	fill save
	for i in 1 2 3 4 5; do
		cli bgsave >/dev/null
		load_elsewhere
		retry 20 saved_ok && say "save $i: ok"
	done
	digest=$(cli debug digest)
	cli shutdown nosave
	ended save
	start_cold
	say "save: digest after restart $([ "$(cli debug digest)" = "$digest" ] && echo equal)"
	cli shutdown nosave
	ended "save, restarted"
	clear
}

# Reads only: the data stays what it is.
load_elsewhere() {
	redis-benchmark -p 7777 -t get,ping -n 1000 -c 8 -P 4 -q >/dev/null 2>&1
}

saved_ok() {
	cli info persistence | tr -d '\r' >info.out
	grep -q '^rdb_bgsave_in_progress:0' info.out && grep -q '^rdb_last_bgsave_status:ok' info.out &&
		grep -q '^aof_rewrite_in_progress:0' info.out
}

appended() {
	local digest
	start --save '' --appendonly yes
	fill append
	cli bgrewriteaof >/dev/null
	load_elsewhere
	retry 30 saved_ok && say "append: rewritten"
	cli set after rewrite >/dev/null
	digest=$(cli debug digest)
	cli shutdown nosave
	ended append
	start_cold --save '' --appendonly yes
	say "append: digest after restart $([ "$(cli debug digest)" = "$digest" ] && echo equal)"
	cli shutdown nosave
	ended "append, restarted"
	clear
}

configured() {
	local i
	start --save ''
	for i in 1 2 3 4 5 6 7 8 9 10; do
		cli config set maxmemory-policy allkeys-lru >/dev/null
		cli config set hz $((i * 10)) >/dev/null
		cli config set maxclients $((100 + i)) >/dev/null
		cli config set appendonly $([ $((i % 2)) = 0 ] && echo no || echo yes) >/dev/null
		say "config $i: load $(cli module load /usr/lib/redis-module.so)"
		say "config $i: answer $(cli undertest.answer)"
		load
		say "config $i: answer $(cli undertest.answer), unload $(cli module unload undertest)"
	done
	say "config: $(cli config get hz | tail -n 1) $(cli config get maxclients | tail -n 1)"
	fill config
	cli shutdown nosave
	ended config
	clear
}

full() {
	start --save ''
	cli config set maxmemory 3mb >/dev/null
	cli config set maxmemory-policy allkeys-lru >/dev/null
	redis-benchmark -p 7777 -t set -r 100000 -d 500 -n 10000 -c 8 -P 8 -q >/dev/null 2>&1
	say "full: evicted some: $(cli info stats | tr -d '\r' | grep -c '^evicted_keys:[1-9]')"
	cli config set maxmemory-policy noeviction >/dev/null
	cli config set maxmemory 1mb >/dev/null
	say "full: $(cli set one more)"
	say "full: $(cli get one)"
	cli config set maxmemory 0 >/dev/null
	fill full
	cli shutdown nosave
	ended full
	clear
}

killed
signalled TERM
signalled USR1
stopped
crashed
saved
appended
configured
full
