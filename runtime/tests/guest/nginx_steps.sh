# What nginx must survive under load as it does natively, without a request
# that fails. $1: "native" or "ridden".
mode=$1
rm -rf /tmp/nginx
mkdir -p /tmp/nginx/html /results/$mode
cd /tmp/nginx
report=/results/$mode/nginx.json

. /usr/bin/steps.sh
run="nginx $mode"

# So many workers, children of the master.
workers() { # MASTER
	cat /proc/$1/task/$1/children
}

has_workers() { # MASTER COUNT
	set -- $2 $(workers $1)
	[ $# -eq $(($1 + 1)) ]
}

has_new_workers() { # MASTER OLD...
	local master=$1 now old
	shift
	now=" $(workers $master) "
	for old in "$@"; do
		case $now in *" $old "*) return 1 ;; esac
	done
	has_workers $master 2
}

gone() {
	! kill -0 $1 2>/dev/null
}

# From now on: whoever serves now, not who did before.
await_rides_if_it_may() {
	[ $mode = ridden ] || return 0
	retry 40 more_ride $report $(ridden_calls $report) || say "nobody rides $*"
}

begin_load() {
	local i
	rm -f /tmp/nginx/stop
	clients=''
	for i in 1 2 3; do
		requests 7780 /tmp/nginx/stop >requests-$i.out &
		clients="$clients $!"
	done
	await_rides_if_it_may
	sleep 0.5
}

end_load() {
	sleep 0.5
	await_rides_if_it_may after "$1"
	: >/tmp/nginx/stop
	wait $clients || :
	say "$1: $(cat requests-1.out), $(cat requests-2.out), $(cat requests-3.out)"
}

cat >nginx.conf <<END
user root root;
worker_processes 2;
error_log /tmp/nginx/error.log;
pid /tmp/nginx/pid;
events { worker_connections 64; }
http {
	access_log /tmp/nginx/access.log;
	client_body_temp_path /tmp/nginx/t1;
	proxy_temp_path /tmp/nginx/t2;
	fastcgi_temp_path /tmp/nginx/t3;
	uwsgi_temp_path /tmp/nginx/t4;
	scgi_temp_path /tmp/nginx/t5;
	server {
		listen 7780;
		root /tmp/nginx/html;
		default_type text/plain;
	}
}
END
echo 'the answer' >html/index.html
ride=''
[ $mode = native ] || ride="ub run --require --eager --report $report --"
status=0
# With its path: it executes itself again to upgrade.
$ride $(command -v nginx) -c /tmp/nginx/nginx.conf || status=$?
say "start: status $status"
retry 20 test -s pid || say "start: no pid"
master=$(cat pid)
retry 20 has_workers $master 2 || say "start: no workers"

for i in 1 2 3; do
	begin_load
	old=$(workers $master)
	kill -HUP $master
	retry 20 has_new_workers $master $old && say "reload $i: new workers"
	end_load "reload $i"
done

begin_load
mv access.log access.old
kill -USR1 $master
retry 20 test -s access.log && say "log: reopened"
end_load log

begin_load
set -- $(workers $master)
kill -QUIT $1
retry 20 gone $1 && say "worker: ended"
retry 20 has_workers $master 2 && say "worker: replaced"
end_load worker

# The requests that it was serving are lost, natively as well: not under load.
set -- $(workers $master)
kill -KILL $1
retry 20 has_new_workers $master $1 && say "killed worker: replaced"
begin_load
end_load "killed worker"

begin_load
kill -USR2 $master
retry 20 test -s pid.oldbin && say "upgrade: old master stands by"
retry 20 test -s pid
new=$(cat pid)
retry 20 has_workers $new 2 && say "upgrade: new workers"
kill -WINCH $master
retry 20 has_workers $master 1 && say "upgrade: only the new master left below the old"
kill -QUIT $master
retry 20 gone $master && say "upgrade: old master gone"
end_load upgrade

begin_load
old=$(workers $new)
kill -HUP $new
retry 20 has_new_workers $new $old && say "reload after upgrade: new workers"
end_load "reload after upgrade"

kill -QUIT $new
retry 20 gone $new && say "end: gone"
cp error.log /results/$mode/
# Which process it was is nobody's outcome.
sed -n 's/^.*\[\(emerg\|alert\)\] [0-9#]*: //p' error.log | sed 's/[0-9][0-9]*/N/g' | sort |
	while read -r line; do say "error log: $line"; done
