# A program whose only hot gap is slow in a ride, on purpose, and the same program
# as it is. The logs tell what the supervisor made of it and when.
cd /results
address=$(pace address)
echo "address $address"
ub run --require --report slowed.json --log slowed.log -v --debug-slow $address:4000 -- pace short 8500 100 >&2
ub run --require --report plain.json --log plain.log -v -- pace short 2400 100 >&2
