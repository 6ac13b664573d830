# A program that rides, started twice. The logs tell what was known of it.
cd /results

. /usr/bin/steps.sh

for run in first second; do
	ub run --require --ride-anyway --native-interval 128 --log $run.log -v -- pace short 2400 100 >&2
done
kept=0
for file in /run/ub/program-*.json; do
	[ ! -f "$file" ] || kept=$((kept + 1))
done
say "kept: $kept"
