# A program whose only hot gap is slow in a ride, on purpose, and the same program
# as it is. The logs tell what the supervisor made of it and when. Then what the program
# does in a second of the guest's clock, natively and when every passage is ridden.
cd /results
address=$(pace address)
echo "address $address"
ub run --require --ride-anyway --report slowed.json --log slowed.log -v --debug-slow $address:4000 -- pace short 8500 100 >&2
ub run --require --ride-anyway --report plain.json --log plain.log -v -- pace short 2400 100 >&2
echo "native $(pace short 100 400)"
echo "ridden $(ub run --require --native-interval 4294967295 -- pace short 2400 400)"
