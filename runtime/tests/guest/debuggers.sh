# A program that tracers and a debugger are attached to while it rides. $1:
# "native" or "ridden".
mode=$1
. /usr/bin/steps.sh
mkdir -p /results/$mode
cd /results/$mode
mount -t tracefs none /sys/kernel/tracing 2>/dev/null || :
stop=/tmp/stop-$mode
ride=''
[ $mode = native ] || ride="ub run --require --eager --report debugged.json --"
$ride debugged $stop >debugged.out &
debugged=$!

ridden() {
	sed -n 's/.*"ridden":\([0-9]*\).*/\1/p' debugged.json
}

rides_on() { # SINCE
	[ $mode = native ] || [ "$(ridden)" -gt "$1" ]
}

# The report is written every second: once more than the calls of that time.
rides_again() { # STEP
	[ $mode = native ] || retry 5 rides_on "$(ridden)"
	retry 20 rides_on "$([ $mode = native ] || ridden)" || say "$1: does not ride any more"
}

[ $mode = native ] || retry 30 rides debugged.json || say "never rode"

lines() { # FILE COUNT
	[ -e $1 ] && [ "$(wc -l <$1)" -ge $2 ]
}

strace -p $debugged -o strace.out -e trace=getuid,getgid 2>strace.err &
tracer=$!
retry 30 lines strace.out 2000 || say "strace: sees nothing"
kill -INT $tracer
wait $tracer || :
say "strace: $(cut -d '(' -f 1 strace.out | uniq -d | wc -l) calls missed"
rides_again strace

strace -p $debugged -o inject.out -e trace=getuid -e inject=getuid:retval=4711:when=100 2>inject.err &
tracer=$!
retry 30 lines inject.out 300 || say "inject: sees nothing"
kill -INT $tracer
wait $tracer || :
say "inject: $(grep -c 4711 inject.out) changed"
rides_again inject

perf stat -x , -e raw_syscalls:sys_enter -o perf.out -p $debugged -- sleep 0.5 2>perf.err && say "perf: exit 0"
say "perf: $(grep -c '^[0-9]\{3,\},' perf.out) counted"
rides_again perf

ub profile -p $debugged --duration 1 --format json --output profile.out 2>profile.err && say "profile: exit 0"
rides_again profile

gdb -nx -batch -p $debugged -x /usr/share/debuggers.gdb >gdb.out 2>gdb.err && say "gdb: exit 0"
sed -n -e 's/0x[0-9a-f]*/ADDRESS/g' -e '/^begin/,/^end/p' gdb.out >gdb.steps
say "gdb: $(grep -c ' => \|^=> ' gdb.steps) single steps"
grep '^[a-z ]*: ' gdb.out | while read -r line; do say "gdb: $line"; done
say "gdb: output $(cksum <gdb.steps)"

: >$stop
wait $debugged && say "end: exit 0" || say "end: exit $?"
say "end: $(cat debugged.out)"
