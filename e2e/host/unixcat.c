/*
 * Sends the lines of its input to a UNIX socket, one at a time, and prints the answer to each. For the
 * gpio's control socket, whose answers are lines, and with -q for QMP, where no tool can be assumed.
 */
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* Nothing takes that long, unless it hangs: milliseconds. */
#define PATIENCE 60000

/* Whether what was received is an answer as a whole: QMP has events between answers. */
static int is_answer(const char *text, size_t length, const char *const *words)
{
    if (!length || text[length - 1] != '\n') return 0;
    for (; *words; words++) {
        if (strstr(text, *words)) return 1;
    }
    return 0;
}

/* Prints what comes up to an answer that has one of the words. Returns whether it came. */
static int print_answer(int fd, const char *const *words)
{
    struct pollfd ready = { .fd = fd, .events = POLLIN };
    static char buffer[65536];
    size_t length = 0;
    while (length < sizeof buffer - 1 && poll(&ready, 1, PATIENCE) == 1) {
        ssize_t count = read(fd, buffer + length, sizeof buffer - 1 - length);
        if (count <= 0) break;
        fwrite(buffer + length, 1, count, stdout);
        fflush(stdout);
        length += count;
        buffer[length] = 0;
        if (is_answer(buffer, length, words)) return 1;
    }
    return 0;
}

int main(int argc, char **argv)
{
    static const char *const any[] = { "", NULL }, *const greeting[] = { "\"QMP\"", NULL };
    static const char *const reply[] = { "\"return\"", "\"error\"", NULL };
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    char line[4096];
    int fd = socket(AF_UNIX, SOCK_STREAM, 0), qmp = argc == 3 && !strcmp(argv[1], "-q");
    const char *path = argv[argc - 1];
    if (argc != 2 + qmp || strlen(path) >= sizeof address.sun_path) return 2;
    strcpy(address.sun_path, path);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address)) {
        perror(path);
        return 1;
    }
    if (qmp && !print_answer(fd, greeting)) return 1;
    while (fgets(line, sizeof line, stdin)) {
        if (write(fd, line, strlen(line)) < 0) return 1;
        if (!print_answer(fd, qmp ? reply : any)) return 1;
    }
    return 0;
}
