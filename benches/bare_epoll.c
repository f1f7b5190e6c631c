/* The lower bound of any server on epoll: it hardly parses its input, and sends a fixed answer.
 *
 *     cc -O2 -o bare_epoll bare_epoll.c && ./bare_epoll PORT PROCESSES [REQUEST ANSWER]
 *
 * With sizes in bytes it answers REQUEST bytes of any content with ANSWER bytes, instead of HTTP.
 *
 * Each process has a listening socket of its own (SO_REUSEPORT), so no process wakes in vain. A
 * request must arrive in one piece, and its connection is kept unless it has `Connection: close`.
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

static void join(int epoll, int fd)
{
    struct epoll_event event = { .events = EPOLLIN, .data.fd = fd };
    check(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event), "epoll_ctl");
}

static size_t request_size, answer_size;

/* Answers requests of a fixed size, of which one read may return several. */
static void answer_all(int client)
{
    static char requests[1 << 16], answers[1 << 16];
    ssize_t length = read(client, requests, sizeof requests);
    if (length > 0) {
        size_t size = length / request_size * answer_size;
        if (write(client, answers, size < sizeof answers ? size : sizeof answers) < 0)
            close(client);
    } else if (length == 0 || errno != EAGAIN) {
        close(client);
    }
}

/* One read, one write, and perhaps a close: the minimum of any server. */
static void answer(int client)
{
    if (request_size > 0) {
        answer_all(client);
        return;
    }
    char request[4096];
    ssize_t length = read(client, request, sizeof request - 1);
    if (length <= 0) {
        if (length == 0 || errno != EAGAIN)
            close(client);
        return;
    }
    request[length] = 0;
    int last = strcasestr(request, "\r\nConnection: close") != NULL;
    ssize_t sent = last ? write(client, closed, sizeof closed - 1)
                        : write(client, kept, sizeof kept - 1);
    if (last || sent < 0)
        close(client);
}

static void serve(int listener)
{
    struct epoll_event events[EVENTS];
    int epoll = check(epoll_create1(EPOLL_CLOEXEC), "epoll_create1");
    join(epoll, listener);
    for (;;) {
        int count = epoll_wait(epoll, events, EVENTS, -1);
        for (int i = 0; i < count; i++) {
            if (events[i].data.fd != listener) {
                answer(events[i].data.fd);
                continue;
            }
            int client;
            while ((client = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0)
                join(epoll, client);
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
    signal(SIGPIPE, SIG_IGN);
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
