// SPDX-License-Identifier: GPL-2.0-or-later
// Connections without end: `flooder KIND HOST PORT ADDRESS...`, from these addresses, one after the other.
//
// KIND "silent": each says nothing, and is held until 200 newer ones are there. "junk": each also sends what no host says.
// Prints the number of its connections so far, a line for each thousand. Ends when nobody reads that any more.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { HELD = 200, SENDS_AFTER = 8, EACH = 1000 };

int main(int argc, char **argv)
{
    static int held[HELD];
    char junk[84];
    memset(junk, 0xa5, sizeof junk);
    struct linger reset = {.l_onoff = 1};
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[3]))};
    inet_pton(AF_INET, argv[2], &to.sin_addr);
    int is_junk = strcmp(argv[1], "junk") == 0;
    for (long count = 0;; count++) {
        struct sockaddr_in from = {.sin_family = AF_INET};
        inet_pton(AF_INET, argv[4 + count % (argc - 4)], &from.sin_addr);
        int *place = &held[count % HELD];
        if (count >= HELD)
            close(*place);
        *place = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        // Nothing stays of it at this end.
        setsockopt(*place, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
        setsockopt(*place, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &(int){1}, sizeof(int));
        bind(*place, (struct sockaddr *)&from, sizeof from);
        connect(*place, (struct sockaddr *)&to, sizeof to);
        if (is_junk && count >= SENDS_AFTER)
            send(held[(count - SENDS_AFTER) % HELD], junk, sizeof junk, MSG_NOSIGNAL);
        if (count % EACH == 0 && (printf("%ld\n", count) < 0 || fflush(stdout)))
            return 0;
    }
}
