# Supervisors that die and modules that go away under load. Every step leaves
# a line "STEP: RESULT" on standard output; the test knows what they must be.
# The argument says how often the modules go and come back.
cd /results

. /usr/bin/steps.sh

load() {
	say "load: $(module load /ub/modules/ub_gate.ko) $(module load /ub/modules/ub.ko)"
}

unload_gate() {
	[ "$(module unload ub_gate)" = ok ]
}

end_sessions() {
	echo 1 >/sys/module/ub/parameters/shutdown
	retry 10 unload_ub && say "$1: unloaded" || say "$1: ub stays"
}

kill_supervisor() {
	ub run --require --eager --report killed.json -- worker until /tmp/killed-stop >killed.out &
	retry 20 rides killed.json || say "kill: never rode"
	say "kill: $(supervisors)"
	sleep 0.3
	: >/tmp/killed-stop
	wait $! && say "kill: exit 0" || say "kill: exit $?"
	say "kill: $(cat killed.out)"
	retry 10 unload_ub && say "kill: unloaded" || say "kill: ub stays"
	retry 10 unload_gate && say "kill: gate unloaded" || say "kill: gate stays"
}

unload_under_load() { # CYCLE
	local n=$1 busy sleeper
	load
	mkfifo /tmp/fifo-$n
	ub run --require --eager --report busy-$n.json -- worker until /tmp/stop-$n >busy-$n.out &
	busy=$!
	ub run --require --eager --report sleeper-$n.json -- worker sleep /tmp/fifo-$n /tmp/asleep-$n >sleeper-$n.out &
	sleeper=$!
	retry 20 rides busy-$n.json || say "cycle $n: busy never rode"
	retry 20 rides sleeper-$n.json || say "cycle $n: sleeper never rode"
	: >/tmp/asleep-$n
	retry 10 asleep $sleeper || say "cycle $n: sleeper does not sleep"
	end_sessions "cycle $n"
	say "cycle $n: gate under a sleeper: $(module unload ub_gate)"
	printf y >/tmp/fifo-$n
	wait $sleeper && say "cycle $n: sleeper exit 0" || say "cycle $n: sleeper exit $?"
	: >/tmp/stop-$n
	wait $busy && say "cycle $n: busy exit 0" || say "cycle $n: busy exit $?"
	say "cycle $n: $(cat sleeper-$n.out), $(cat busy-$n.out)"
	retry 10 unload_gate && say "cycle $n: gate unloaded" || say "cycle $n: gate stays"
}

# Twice in a row, or a short wait would count.
asleep() { # PID
	[ "$(cut -d' ' -f3 /proc/$1/stat)" = S ] && sleep 0.2 &&
		[ "$(cut -d' ' -f3 /proc/$1/stat)" = S ]
}

load
kill_supervisor
cycle=1
while [ $cycle -le "$1" ]; do
	unload_under_load $cycle
	cycle=$((cycle + 1))
done
