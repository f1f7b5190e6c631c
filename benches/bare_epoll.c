/* The lower bound of any server on epoll: it hardly parses its input, and sends a fixed answer.
 *
 *     cc -O2 -o bare_epoll bare_epoll.c && ./bare_epoll PORT PROCESSES [REQUEST ANSWER]
 *
 * With sizes in bytes it answers REQUEST bytes of any content with ANSWER bytes, instead of HTTP.
 *
 * Each process has a listening socket of its own (SO_REUSEPORT), so no process wakes in vain. A
 * request must arrive in one piece of less than 4 KiB, and its connection is kept unless it has
 * `Connection: close`, written so.
 * Nothing else is parsed: it is a baseline for measurements, no server. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define EVENTS 512
#define FIELDS "Date: Thu, 01 Jan 1970 00:00:00 GMT\r\nServer: bare\r\nContent-Type: text/plain\r\n"
#define BODY "Content-Length: 14\r\n\r\nHello, world!\n"

static const char kept[] = "HTTP/1.1 200 OK\r\n" FIELDS "Connection: keep-alive\r\n" BODY;
static const char closed[] = "HTTP/1.1 200 OK\r\n" FIELDS "Connection: close\r\n" BODY;

static int check(int result, const char *what)
{
    if (result < 0) {
        perror(what);
        exit(1);
    }
    return result;
}

static int listen_on(int port)
{
    int one = 1;
    int fd = check(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), "socket");
    struct sockaddr_in name = { .sin_family = AF_INET, .sin_port = htons(port) };
    name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    check(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one), "SO_REUSEADDR");
    check(setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof one), "SO_REUSEPORT");
    check(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one), "TCP_NODELAY");
    check(bind(fd, (struct sockaddr *)&name, sizeof name), "bind");
    check(listen(fd, 2048), "listen");
    return fd;
}

static void join(int epoll, int fd, unsigned events)
{
    struct epoll_event event = { .events = events, .data.fd = fd };
    check(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event), "epoll_ctl");
}

static size_t request_size, answer_size;

/* Answers requests of a fixed size, of which one read may return several. Returns whether to close. */
static int answer_all(int client)
{
    static char requests[1 << 16], answers[1 << 16];
    ssize_t length;
    do {
        length = recv(client, requests, sizeof requests, 0);
        if (length <= 0)
            return length == 0 || errno != EAGAIN;
        size_t size = length / request_size * answer_size;
        if (send(client, answers, size < sizeof answers ? size : sizeof answers, MSG_NOSIGNAL) < 0)
            return 1;
    } while (length == sizeof requests); /* an edge is reported once */
    return 0;
}

/* One call to receive, one to send, and perhaps a close: the minimum of any server. */
static int answer(int client)
{
    if (request_size > 0)
        return answer_all(client);
    char request[4096];
    ssize_t length = recv(client, request, sizeof request - 1, 0);
    if (length <= 0)
        return length == 0 || errno != EAGAIN;
    request[length] = 0;
    int last = strstr(request, "\r\nConnection: close") != NULL;
    ssize_t sent = last ? send(client, closed, sizeof closed - 1, MSG_NOSIGNAL)
                        : send(client, kept, sizeof kept - 1, MSG_NOSIGNAL);
    return last || sent < 0;
}

static void serve(int listener)
{
    struct epoll_event events[EVENTS];
    int epoll = check(epoll_create1(EPOLL_CLOEXEC), "epoll_create1");
    join(epoll, listener, EPOLLIN);
    for (;;) {
        int count = epoll_wait(epoll, events, EVENTS, -1);
        for (int i = 0; i < count; i++) {
            if (events[i].data.fd != listener) {
                /* The end of the input may come with the last request. */
                int ends = events[i].events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR);
                if (answer(events[i].data.fd) || ends)
                    close(events[i].data.fd);
                continue;
            }
            int client;
            while ((client = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0)
                join(epoll, client, EPOLLIN | EPOLLRDHUP | EPOLLET);
        }
    }
}

int main(int argc, char **argv)
{
    if (argc != 3 && argc != 5) {
        fprintf(stderr, "usage: %s PORT PROCESSES [REQUEST ANSWER]\n", argv[0]);
        return 2;
    }
    int port = atoi(argv[1]), processes = atoi(argv[2]);
    if (argc == 5) {
        request_size = atoi(argv[3]);
        answer_size = atoi(argv[4]);
    }
    for (int i = 0; i < processes; i++) {
        if (check(fork(), "fork") == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            serve(listen_on(port));
        }
    }
    while (wait(NULL) > 0)
        ;
    return 0;
}
