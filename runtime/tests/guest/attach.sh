# Running processes that join a session and leave it. The argument says how
# many short-lived processes a session sees.
cd /results
. /usr/bin/steps.sh

gone() { # PID
	[ ! -e "/proc/$1" ]
}

native_again() { # PID: the mark is gone once it has made a call
	sleep 0.3
	kill -0 "$1" && echo alive || echo dead
}

nice_of() { # PID
	set -- $(sed 's/.*) //' "/proc/$1/stat")
	echo "${17}"
}

# start NAME WORKER-ARGUMENT...: in the background, natively. Its pid is $worker.
start() {
	local name=$1
	shift
	worker "$@" >$name.out &
	worker=$!
}

# attach NAME ARGUMENT...: in the background. Its pid is $supervisor.
attach() {
	local name=$1
	shift
	ub attach --eager --report $name.json "$@" 2>$name.err &
	supervisor=$!
	retry 20 rides $name.json || say "$name: never rode"
}

ends() { # STEP PID
	wait "$2" && say "$1: exit 0" || say "$1: exit $?"
}

one_process() {
	start one until /tmp/stop-one
	attach first $worker
	say "nice: program $(nice_of $worker), supervisor $(nice_of $supervisor)"
	ub attach $worker 2>refused.err && say "second: joined" || say "second: exit $?"
	sed "s/$worker/PID/g" refused.err | while read -r line; do say "second: $line"; done
	ub detach $worker && say "detach: exit 0" || say "detach: exit $?"
	ends "first supervisor" $supervisor
	say "detached: $(native_again $worker)"
	ub detach $worker 2>again.err && say "again: detached" || say "again: exit $?"
	attach second $worker
	kill -9 $supervisor
	wait $supervisor || true
	say "supervisor killed: $(native_again $worker)"
	attach third $worker
	: >/tmp/stop-one
	ends worker $worker
	ends "third supervisor" $supervisor
	say "worker: $(cat one.out)"
}

many_threads() {
	start threads threads /tmp/stop-threads 6
	attach threads $worker
	say "threads: $(grep -o '"threads":7,"threads_now":7' threads.json)"
	ub detach $worker
	ends "threads' supervisor" $supervisor
	: >/tmp/stop-threads
	ends threads $worker
	say "threads: $(cat threads.out)"
}

control_group() {
	mkdir -p /tmp/cgroup
	mount -t cgroup2 none /tmp/cgroup
	mkdir /tmp/cgroup/a /tmp/cgroup/a/below
	start inside until /tmp/stop-group
	inside=$worker
	echo $inside >/tmp/cgroup/a/cgroup.procs
	attach group --cgroup /tmp/cgroup/a
	start later until /tmp/stop-group
	echo $worker >/tmp/cgroup/a/below/cgroup.procs
	retry 20 grep -qs '"threads_now":2' group.json && say "group: the new member joined"
	sleep 100 &
	idle=$!
	echo $idle >/tmp/cgroup/a/cgroup.procs
	retry 20 ub stat -p $idle >/dev/null 2>&1 && say "group: a member without calls is known"
	ub detach --cgroup /tmp/cgroup/a && say "group: detach exit 0" || say "group: detach exit $?"
	ends "group's supervisor" $supervisor
	kill $idle
	: >/tmp/stop-group
	ends inside $inside
	ends later $worker
	say "group: $(cat inside.out), $(cat later.out)"
}

nobody() {
	ub attach 999999 2>nobody.err && say "nobody: attached" || say "nobody: exit $?"
	say "nobody: $(cat nobody.err)"
	ub attach 2 2>kernel.err && say "kernel thread: attached" || say "kernel thread: exit $?"
	say "kernel thread: $(cat kernel.err)"
}

short_lived() { # COUNT
	ub run --require --eager --report churn.json -- worker churn $1 >churn.out
	say "short-lived: $(cat churn.out)"
	retry 10 grep -qs '"threads_now":0' churn.json && say "short-lived: all gone"
}

one_process
many_threads
control_group
nobody
short_lived $1
