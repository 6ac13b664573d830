# Units of Redis's own test suite. $1: "native" or "ridden"; then the units.
# The suite starts src/redis-server, which in a ridden run is a script that
# starts a session each time.
mode=$1
shift
place=/tmp/suite-$mode
mkdir -p $place/src /results/$mode
cp -r /usr/share/redis-tests/tests $place
cd $place
for program in redis-cli redis-benchmark; do
	ln -s /usr/bin/$program src/$program
done
# The server under other names, as in Debian.
for program in redis-check-aof redis-check-rdb; do
	ln -s /usr/bin/redis-server src/$program
done
if [ $mode = native ]; then
	ln -s /usr/bin/redis-server src/redis-server
else
	cat >src/redis-server <<END
#!/bin/sh
exec ub run --require --eager --report /results/$mode/server-\$\$.json -- /usr/bin/redis-server "\$@"
END
	chmod +x src/redis-server
fi
for unit in "$@"; do
	echo "ub test: suite $mode: $unit" >/dev/kmsg
	status=0
	# Those that are left out make tens of thousands of calls: too long under emulation.
	tclsh tests/test_helper.tcl --single $unit --clients 1 --tags '-slow -large-memory' \
		--skiptest "ZDIFF fuzzing - listpack" --skiptest "ZDIFF fuzzing - skiplist" \
		--skiptest "XDEL fuzz test" >log 2>&1 </dev/null || status=$?
	# How long each test took is nobody's outcome.
	sed -n -e 's/\x1b\[[0-9;]*m//g' -e "s|^\[\([a-z]*\)\]: \(.*\) ([0-9]* ms)\$|$unit: \1: \2|p" log
	[ $status = 0 ] || cp log /results/$mode/log-$(echo $unit | tr / -)
	echo "$unit: status $status"
done
