/* Counts packets of one port by its own means; compiled in many variants. */
#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <netinet/ip.h>
#include <netinet/udp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define ETHERNET 14
#define WANTED_PORT 4242
#define TYPE_IPV4 0x0800
#define LAST_PACKET 1
#define LEARNED (ETHERNET + 20 + 8)

static unsigned char buffer[2048];
static unsigned long wanted, bytes, all, sum;
static volatile uint16_t port_now = WANTED_PORT;
static unsigned char table[256];
static volatile int stop;

/* 2 if the packet ends the program, 1 if it is wanted, 0 if not. */
static inline int judge(const unsigned char *packet, ssize_t length)
{
	const struct ip *ip = (const void *)(packet + ETHERNET);
	const struct udphdr *udp;
	uint16_t type, port = WANTED_PORT;

#if defined(READS_GLOBAL) || defined(LEARNS)
	port = port_now;
#endif
#ifdef READS_UNGUARDED
	/* Whatever an earlier packet left there. */
	if (packet[300] == 7)
		return 0;
#else
	if (length < ETHERNET + 20 + 8)
		return 0;
#endif
	memcpy(&type, packet + 12, sizeof(type));
	if (ntohs(type) != TYPE_IPV4 || ip->ip_v != 4 || ip->ip_p != IPPROTO_UDP)
		return 0;
#ifdef FIXED_HEADER
	if (ip->ip_hl != 5)
		return 0;
	udp = (const void *)(packet + ETHERNET + 20);
#else
	udp = (const void *)((const unsigned char *)ip + ip->ip_hl * 4);
	if ((const unsigned char *)udp + 8 > packet + length)
		return 0;
#endif
	if (ntohs(udp->uh_dport) == LAST_PACKET)
		return 2;
#ifdef PORT_RANGE
	return ntohs(udp->uh_dport) >= port && ntohs(udp->uh_dport) < port + 16;
#else
	return ntohs(udp->uh_dport) == port;
#endif
}

static int fd;
static const char *interface, *deed = "";

#define UDP_PORT 4711
static const struct sockaddr_in loopback = {
	.sin_family = AF_INET,
	.sin_addr.s_addr = 0x0100007f,
	.sin_port = UDP_PORT >> 8 | (UDP_PORT & 255) << 8,
};

/* Sends packets to the program that counts "udp". */
static int send_packets(int count, unsigned int port)
{
	unsigned char packet[90] = { [12] = 8, [14] = 0x45, [23] = IPPROTO_UDP };
	int socket_fd = socket(AF_INET, SOCK_DGRAM, 0);

	packet[36] = port >> 8;
	packet[37] = port;
	while (count--) {
		if (sendto(socket_fd, packet, sizeof(packet), 0, (void *)&loopback,
			   sizeof(loopback)) < 0)
			return 6;
		usleep(300);
	}
	return 0;
}

static int open_udp(void)
{
	int socket_fd = socket(AF_INET, SOCK_DGRAM, 0);

	if (socket_fd < 0 || bind(socket_fd, (void *)&loopback, sizeof(loopback)))
		_exit(5);
	return socket_fd;
}

static int open_socket(void)
{
	struct sockaddr_ll address = {
		.sll_family = AF_PACKET,
		.sll_protocol = htons(ETH_P_ALL),
		.sll_ifindex = if_nametoindex(interface),
	};
	/* It takes no packets before it is bound. */
	int socket_fd;

	if (!strcmp(interface, "udp"))
		return open_udp();
	socket_fd = socket(AF_PACKET, SOCK_RAW, 0);
	if (socket_fd < 0 || bind(socket_fd, (void *)&address, sizeof(address)))
		_exit(5);
	return socket_fd;
}

/* A process that has the socket and does nothing with it. */
static void start_other(void)
{
	pid_t parent = getpid();

	if (fork())
		return;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	/* It may have ended before that. */
	while (getppid() == parent)
		pause();
	_exit(0);
}

/* What ends the assumptions of a filter. */
static void on_signal(int signal)
{
	(void)signal;
	if (!strcmp(deed, "dup"))
		dup(fd);
	else if (!strcmp(deed, "fork"))
		start_other();
	else if (!strcmp(deed, "filter"))
		setsockopt(fd, SOL_SOCKET, SO_DETACH_FILTER, &fd, sizeof(fd));
	else if (!strcmp(deed, "code"))
		mprotect((void *)((uintptr_t)on_signal & -4096), 4096, PROT_READ | PROT_EXEC);
	else if (!strcmp(deed, "close")) {
		close(fd);
		fd = open_socket();
	}
}

/*
 * Counts what comes from an interface, from a UDP socket ("udp") or, without
 * arguments, from standard input.
 */
int main(int argc, char **argv)
{
	static volatile uint32_t *shared;

	if (argc > 3 && !strcmp(argv[1], "send"))
		return send_packets(atoi(argv[2]), atoi(argv[3]));
	if (argc > 1) {
		interface = argv[1];
		fd = open_socket();
	}
	if (argc > 2) {
		deed = argv[2];
		signal(SIGUSR1, on_signal);
	}
#ifdef FORKS
	start_other();
#endif

	shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	for (int i = 0; i < 256; i++)
		table[i] = i * 7;
	stop = !shared;
	while (!stop) {
#ifdef RECEIVES_ADDRESS
		struct sockaddr_storage from;
		socklen_t size = sizeof(from);
		ssize_t length = recvfrom(fd, buffer, sizeof(buffer), 0, (void *)&from, &size);
#elif defined(USES_READ)
		ssize_t length = read(fd, buffer, sizeof(buffer));
#else
		ssize_t length = recv(fd, buffer, sizeof(buffer), 0);
#endif
		int verdict;

		if (length < 0)
			return 1;
#ifdef COUNTS_ALL
		all++;
#endif
#ifdef LOOPS
		if (length < 64) {
			all++;
			continue;
		} else {
			unsigned long check = 0;

			for (ssize_t i = 0; i < length; i++)
				check += buffer[i];
			if (check & 0x80)
				continue;
		}
#endif
#ifdef READS_SHARED
		if (*shared)
			return 2;
#endif
#ifdef READS_TABLE
		if (length == 0)
			all++;
		else if (table[buffer[0]] == 7)
			continue;
#endif
#ifdef READS_CLOCK
		{
			struct timespec now;

			clock_gettime(CLOCK_MONOTONIC, &now);
			if (now.tv_sec == 0)
				return 3;
		}
#endif
		verdict = judge(buffer, length);
		if (verdict == 2)
			break;
		if (!verdict) {
#ifdef LOGS
			if (write(2, "other\n", 6) < 0)
				return 4;
#endif
			continue;
		}
		wanted++;
		bytes += length;
		for (ssize_t i = 0; i < length; i++)
			sum = sum * 31 + buffer[i];
#ifdef LEARNS
		/* It says which port is wanted from now on. */
		if (length >= LEARNED + 2)
			port_now = buffer[LEARNED] << 8 | buffer[LEARNED + 1];
#endif
#ifdef ANNOUNCES
		/* It says that the next one is wanted, whatever that is. */
		all += read(fd, buffer, sizeof(buffer)) > 0;
#endif
	}
	printf("wanted %lu bytes %lu all %lu sum %lx\n", wanted, bytes, all, sum);
	return 0;
}
