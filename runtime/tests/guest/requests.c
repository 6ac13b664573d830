/*
 * `requests PORT FILE`: asks the server for /, each time on a new connection,
 * until the file exists; prints how many answers were wrong. As a native
 * client would see them: whoever refuses, cuts or garbles one has failed it.
 */
#include "guest.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/time.h>

#define BODY "the answer\n"

static bool ask(int port)
{
	static const char request[] = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
	struct sockaddr_in server = { .sin_family = AF_INET, .sin_port = htons(port),
				      .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	struct timeval limit = { .tv_sec = 20 };
	char answer[2048];
	size_t length = 0;
	ssize_t got = -1;
	int connection = MUST(socket(AF_INET, SOCK_STREAM, 0));

	setsockopt(connection, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	if (connect(connection, (struct sockaddr *)&server, sizeof(server)) == 0 &&
	    send(connection, request, sizeof(request) - 1, MSG_NOSIGNAL) == sizeof(request) - 1)
		while (length < sizeof(answer) - 1 &&
		       (got = recv(connection, answer + length, sizeof(answer) - 1 - length, 0)) > 0)
			length += got;
	close(connection);
	answer[length] = 0;
	return got == 0 && !strncmp(answer, "HTTP/1.1 200 ", 13) && length > strlen(BODY) &&
	       !strcmp(answer + length - strlen(BODY), BODY);
}

int main(int argc, char **argv)
{
	long answered = 0, failed = 0;

	if (argc != 3)
		return 2;
	while (access(argv[2], F_OK) != 0) {
		if (ask(atoi(argv[1])))
			answered++;
		else
			failed++;
	}
	printf("answered %s, failed %ld\n", answered > 20 ? "many" : "FEW", failed);
	return 0;
}
