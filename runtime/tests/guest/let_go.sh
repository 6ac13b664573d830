# A machine of which is known that rides do not pay. That is written here by hand: what
# was measured may say so or not.
cd /results
. /usr/bin/steps.sh

# Rides that are judged, whatever the module's parameters are.
judged="--native-interval 128"
known=/run/ub/machine.json

no_pay() { # FILE: it says why
	grep -q 'rides do not pay on this machine: a call that does nothing takes 1000000000 ns' "$1" &&
		echo why || cat "$1"
}

said() { # STEP COMMAND...: its exit status, and whether it said why
	local step=$1 status=0
	shift
	"$@" >$step.out 2>$step.err || status=$?
	say "$step: exit $status, $(no_pay $step.err)"
}

ub doctor --measure >doctor || true
sed 's/"ridden":{.*/"ridden":{"null_call_ns":1e9,"code_alone_ns":1e9,"message_ns":1e9}}}/' $known >no-gain
rm $known

# It is found out while a program runs.
ub run --require $judged --report found.json -- sh -c 'until [ -e /tmp/go ]; do sleep 0.1; done; exec pace short 60000 100' >&2 &
program=$!
retry 20 ub stat -p $program >before 2>&1 && say "before: in a session" || say "before: $(cat before)"
cp no-gain $known
: >/tmp/go
retry 60 grep -qs '"ended":true' found.json && say "found: the session ended"
kill -0 $program && say "found: the program goes on"
grep -q '"native_reason":"rides do not pay' found.json && say "found: the report says why"
said stat ub stat -p $program
said top ub top --once
said attach ub attach $judged --report attached.json $program
grep -q '"native_reason":"rides do not pay' attached.json && say "attach: the report says why"
kill $program
wait $program || true

# It is known when a program starts.
said known ub run --require $judged --report known.json -- sh -c 'exit 7'
grep -q '"ended":true' known.json && say "known: the session ended"
# Who asks for counters gets them, and who wants rides all the same gets them, too.
said counted ub stat $judged -- pace short 100 100
said anyway ub run --ride-anyway $judged --report anyway.json -- pace short 3000 100
retry 20 rides anyway.json && say "anyway: rode"
