// Reads 4 KiB at random places of a disk, past the page cache, by the kernel's asynchronous I/O: a measure that
// runs in a guest with nothing installed. Prints reads in a second, and the median of their latency.
//
// usage: reads DISK DEPTH SECONDS
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/fs.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { LEN = 4096, MOST = 64, KEPT = 1 << 20 };

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000ull + time.tv_nsec;
}

static int compare(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

int main(int argc, char **argv) {
    unsigned depth = argc == 4 ? atoi(argv[2]) : 0, seconds = argc == 4 ? atoi(argv[3]) : 0;
    if (depth < 1 || depth > MOST || seconds < 1) {
        fprintf(stderr, "usage: reads DISK DEPTH SECONDS\n");
        return 2;
    }
    int disk = open(argv[1], O_RDONLY | O_DIRECT);
    uint64_t size;
    if (disk < 0 || ioctl(disk, BLKGETSIZE64, &size) < 0) fail(argv[1]);
    aio_context_t context = 0;
    if (syscall(SYS_io_setup, depth, &context) < 0) fail("io_setup");
    static uint32_t waits[KEPT];
    static struct iocb requests[MOST];
    static uint64_t begun[MOST];
    struct io_event events[MOST];
    uint64_t random = now(), reads = 0, start = now(), end = start + seconds * 1000000000ull, time = start;
    unsigned ready = depth;
    for (unsigned n = 0; n < depth; n++) {
        void *buffer;
        if (posix_memalign(&buffer, LEN, LEN)) fail("memory");
        requests[n].aio_data = n;
        requests[n].aio_lio_opcode = IOCB_CMD_PREAD;
        requests[n].aio_fildes = disk;
        requests[n].aio_buf = (uintptr_t)buffer;
        requests[n].aio_nbytes = LEN;
        events[n].data = n;
    }
    while (time < end) {
        // What has completed begins anew, each with its own system call, as fio does it.
        for (unsigned n = 0; n < ready; n++) {
            struct iocb *request = &requests[events[n].data];
            random = random * 6364136223846793005ull + 1442695040888963407ull;
            request->aio_offset = (int64_t)((random >> 20) % (size / LEN) * LEN);
            begun[events[n].data] = now();
            if (syscall(SYS_io_submit, context, 1, &request) != 1) fail("io_submit");
        }
        int got = syscall(SYS_io_getevents, context, 1, depth, events, NULL);
        if (got < 1) fail("io_getevents");
        ready = got;
        time = now();
        for (unsigned n = 0; n < ready; n++) {
            if (events[n].res != LEN) {
                fprintf(stderr, "a read ended with %lld\n", (long long)events[n].res);
                return 1;
            }
            waits[reads++ % KEPT] = time - begun[events[n].data];
        }
    }
    size_t kept = reads < KEPT ? reads : KEPT;
    qsort(waits, kept, sizeof *waits, compare);
    printf("reads %.0f a second, median %.1f us\n", reads * 1e9 / (time - start), waits[kept / 2] / 1e3);
    return 0;
}
