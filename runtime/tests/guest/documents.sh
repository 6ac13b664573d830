# Runs the commands of the documents, one a line of /commands, as they are
# written there; a line "NAME.md" starts the next document.
cd /results

. /usr/bin/steps.sh

redis_serves() {
	[ "$(redis-cli ping 2>&1)" = PONG ]
}

redis_is_gone() {
	! pidof redis-server >/dev/null
}

# What a reader would do who was too quick: try again.
runs() {
	timeout 120 sh -c "$1" >>output 2>&1 </dev/null
}

while read -r line; do
	echo "--- $line" >>output
	case $line in
	*.md)
		redis_is_gone || redis-cli shutdown nosave >/dev/null 2>&1 || true
		retry 30 redis_is_gone || say "redis-server does not end"
		;;
	*'&')
		sh -c "${line%&} >>output 2>&1 </dev/null &"
		retry 60 redis_serves || say "redis-server does not serve after: $line"
		;;
	*) retry 5 runs "$line" || say "failed: $line" ;;
	esac
done </commands
say "all ran"
