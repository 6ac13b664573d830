# What the scripts of the tests share. A script that runs more than once in a guest
# names its $run for the kernel's log. Every step leaves a line "STEP: RESULT"
# on standard output; the test knows what they must be.
say() {
	echo "$*"
	echo "ub test: ${run:+$run: }$*" >/dev/kmsg
}

# retry SECONDS COMMAND...: until it succeeds.
retry() {
	local left=$(($1 * 10))
	shift
	until "$@"; do
		left=$((left - 1))
		[ $left -gt 0 ] || return 1
		sleep 0.1
	done
}

# The calls of the session, not those of one gap, which may have led nowhere.
rides() { # REPORT
	grep -qs '"ridden":[1-9][0-9]*,"ridden_share"' "$1"
}

# How many calls of the session rode so far; 0 without a report.
ridden_calls() { # REPORT
	local calls
	calls=$(sed -n 's/.*"ridden":\([0-9]*\),"ridden_share".*/\1/p' "$1" 2>/dev/null)
	echo "${calls:-0}"
}

# Whether a hundred more rode than these.
more_ride() { # REPORT CALLS
	[ "$(ridden_calls "$1")" -gt $(($2 + 100)) ]
}

# Supervisors need a moment to notice the end of their sessions.
unload_ub() {
	[ "$(module unload ub)" = ok ]
}

# The redis server of a script, which listens where no other does.
cli() {
	redis-cli -p 7777 "$@"
}

serves() {
	[ "$(cli ping 2>&1)" = PONG ]
}
