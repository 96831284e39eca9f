/*
 * Connects to a vfio-user server, and becomes another program that will connect to it, too: the
 * server is told by the kernel who connects, and for both it is this process. What stays behind on
 * the first connection does what that program does not know how to ask for.
 *
 * usage: beside SOCKET COMMANDS ANSWERS PROGRAM ARGUMENT...
 *
 * COMMANDS is a FIFO, ANSWERS a file. A line "hot-reset" resets the device's set (DEVICE_FEATURE
 * 0x7f01), "members" counts it (0x7f00). Each is answered by a line: the command, then the errno
 * of the reply or 0, and for "members" their number, and 1 if a hot reset would be allowed.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { VERSION = 1, FEATURE = 16 };
enum { GET = 1 << 16, SET = 1 << 17 };

struct header {
    uint16_t id, command;
    uint32_t size, flags, error;
};

static uint16_t next_id;

/* Sends a command and receives its reply; returns the errno, -1 if there is no talking. */
static int call(int fd, uint16_t command, const void *payload, size_t size, void *reply, size_t room)
{
    char message[512];
    struct header header = { next_id++, command, sizeof header + size, 0, 0 };
    size_t done = 0;
    memcpy(message, &header, sizeof header);
    memcpy(message + sizeof header, payload, size);
    if (write(fd, message, header.size) != (ssize_t)header.size) return -1;
    if (recv(fd, &header, sizeof header, MSG_WAITALL) != sizeof header) return -1;
    size = header.size - sizeof header;
    while (done < size) {
        ssize_t count = read(fd, message, size - done < sizeof message ? size - done : sizeof message);
        if (count <= 0) return -1;
        if (done < room)
            memcpy((char *)reply + done, message, (size_t)count < room - done ? (size_t)count : room - done);
        done += count;
    }
    return header.error;
}

static void serve(int fd, FILE *commands, FILE *answers)
{
    char line[64];
    while (fgets(line, sizeof line, commands)) {
        line[strcspn(line, "\n")] = 0;
        if (!strcmp(line, "hot-reset")) {
            uint32_t request[4] = { 16, 0x7f01 | SET, 0, 0 };
            fprintf(answers, "hot-reset %d\n", call(fd, FEATURE, request, sizeof request, NULL, 0));
        } else if (!strcmp(line, "members")) {
            uint32_t request[2] = { 4096, 0x7f00 | GET };
            /* argsz and flags again; then how many, and flags. */
            uint32_t reply[4] = { 0 };
            int error = call(fd, FEATURE, request, sizeof request, reply, sizeof reply);
            fprintf(answers, "members %d %u %u\n", error, reply[2], reply[3] & 1);
        }
        fflush(answers);
    }
}

int main(int argc, char **argv)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    static const char version[] = "\0\0\0\0{\"capabilities\":{}}";
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (argc < 5 || strlen(argv[1]) >= sizeof address.sun_path) return 2;
    strcpy(address.sun_path, argv[1]);
    if (connect(fd, (struct sockaddr *)&address, sizeof address)) {
        perror(argv[1]);
        return 1;
    }
    int error = call(fd, VERSION, version, sizeof version, NULL, 0);
    if (error) {
        fprintf(stderr, "beside: VERSION answered with %d\n", error);
        return 1;
    }
    /* Twice, so that the program has no child that it does not know. */
    if (fork() == 0) {
        if (fork() == 0) {
            FILE *commands = fopen(argv[2], "r"), *answers = fopen(argv[3], "a");
            if (commands && answers) serve(fd, commands, answers);
        }
        _exit(0);
    }
    execvp(argv[4], argv + 4);
    perror(argv[4]);
    return 1;
}
