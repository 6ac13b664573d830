# A program that rides, started twice. The logs tell what was known of it.
cd /results

. /usr/bin/steps.sh

kept() {
	set -- /run/ub/program-*.json
	[ -f "$1" ] && [ $# = 1 ]
}

for run in first second; do
	ub run --require --ride-anyway --native-interval 128 --log $run.log -v -- pace short 100000 100 >&2 &
	# Until more was translated than what was hot at first.
	retry 60 grep -qs ' installed .*reach=Far' $run.log || say "$run: nothing was learned"
	kill $!
	wait $! || true
	retry 20 grep -q 'session over' $run.log || say "$run: the supervisor goes on"
done
kept && say "kept: 1" || say "kept: not one file"
