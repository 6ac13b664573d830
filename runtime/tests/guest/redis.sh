# redis under load while its session ends and the module goes and comes back: it goes on
# serving, rides again in a new session, and at the end it knows what a native one would know.
cd /results

. /usr/bin/steps.sh

writes() { # FROM TO
	local i=$1
	while [ $i -lt $2 ]; do
		echo "SET key:$i value:$i"
		echo "LPUSH list:$((i % 10)) $i"
		i=$((i + 1))
	done | cli >>writes.out
}

start() { # COMMAND...
	"$@" redis-server --port 7777 --save '' --enable-debug-command yes >server.out 2>&1 &
	server=$!
	retry 20 serves || say "does not serve"
}

stop() {
	cli shutdown nosave
	wait $server && say "exit 0" || say "exit $?"
}

start
writes 0 600
say "native digest: $(cli debug digest)"
stop

start ub run --require --eager --report redis.json --
redis-benchmark -p 7777 -t get,ping -n 1000000000 -c 8 -q >/dev/null 2>&1 &
load=$!
writes 0 200
retry 20 rides redis.json || say "never rode"
for cycle in 1 2 3 4 5; do
	first=$((cycle * 60 + 140))
	writes $first $((first + 30))
	echo 1 >/sys/module/ub/parameters/shutdown
	retry 10 unload_ub && say "cycle $cycle: unloaded" || say "cycle $cycle: ub stays"
	writes $((first + 30)) $((first + 60))
	serves && say "cycle $cycle: serves"
	say "cycle $cycle: load: $(module load /ub/modules/ub.ko)"
	ub attach --eager --report cycle-$cycle.json $server 2>>attach.err &
	retry 20 rides cycle-$cycle.json && say "cycle $cycle: rides" || say "cycle $cycle: no rides"
done
writes 500 600
kill -0 $load && say "the clients never lost their connections"
kill $load
wait $load || :
say "ridden digest: $(cli debug digest)"
say "errors: $(grep -c ERR writes.out)"
stop
