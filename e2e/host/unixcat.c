/*
 * Sends the lines of its input to a UNIX socket, one at a time, and prints what comes back within
 * half a second of each. For QMP and for the gpio's control socket, where no tool can be assumed.
 */
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static void print_answers(int fd)
{
    struct pollfd ready = { .fd = fd, .events = POLLIN };
    char buffer[4096];
    while (poll(&ready, 1, 500) == 1) {
        ssize_t count = read(fd, buffer, sizeof buffer);
        if (count <= 0) break;
        fwrite(buffer, 1, count, stdout);
        fflush(stdout);
        if (buffer[count - 1] == '\n') break;
    }
}

int main(int argc, char **argv)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    char line[4096];
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (argc != 2 || strlen(argv[1]) >= sizeof address.sun_path) return 2;
    strcpy(address.sun_path, argv[1]);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address)) {
        perror(argv[1]);
        return 1;
    }
    while (fgets(line, sizeof line, stdin)) {
        if (write(fd, line, strlen(line)) < 0) return 1;
        print_answers(fd);
    }
    /* A greeting puts every answer one late: the last is still to come. */
    print_answers(fd);
    return 0;
}
