/*
 * Writes blocks of a disk by several threads, and reads them back, past the page cache: sizes, places and order are
 * random. Each block says where it is and of which write.
 *
 *   blocks write DEVICE THREADS SEED TABLE STOP    until the file STOP is there; TABLE gets what was written
 *   blocks check DEVICE TABLE                      the disk has what TABLE says
 *
 * Exits 0 if each read gave what was written last, and none failed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { BLOCK = 512, MOST = 256, THREADS = 64 };

static const char *device, *stop;
static uint64_t blocks;
static uint32_t *versions; /* of the last write of each block; 0: none */

struct thread {
    pthread_t thread;
    uint64_t state, first, count, writes, reads;
    int failed;
};

static uint32_t below(struct thread *thread, uint32_t limit)
{
    uint64_t state = thread->state;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    thread->state = state;
    return (uint32_t)(state >> 16) % limit;
}

static void put(uint8_t *at, uint64_t block, uint32_t version)
{
    uint64_t words[BLOCK / 8];
    for (int i = 0; i < BLOCK / 8; i++)
        words[i] = version ? (block + 1) * 0x9e3779b97f4a7c15ull ^ (uint64_t)version << 32 ^ i : 0;
    memcpy(at, words, BLOCK);
}

/* Reads blocks and compares them with what they should have. */
static int verify(int fd, uint8_t *buffer, uint64_t first, uint64_t count)
{
    uint8_t expected[BLOCK];
    ssize_t got = pread(fd, buffer, count * BLOCK, first * BLOCK);
    if (got != (ssize_t)(count * BLOCK)) {
        printf("blocks: reading %llu of %llu: %zd, %s\n", (long long)first, (long long)count, got, strerror(errno));
        return -1;
    }
    for (uint64_t i = 0; i < count; i++) {
        put(expected, first + i, versions[first + i]);
        if (memcmp(buffer + i * BLOCK, expected, BLOCK)) {
            uint64_t found;
            memcpy(&found, buffer + i * BLOCK, 8);
            printf("blocks: block %llu is not of write %u: it begins with %#llx\n", (long long)(first + i),
                versions[first + i], (long long)found);
            return -1;
        }
    }
    return 0;
}

static void *work(void *argument)
{
    struct thread *thread = argument;
    uint8_t *buffer = aligned_alloc(4096, MOST * BLOCK);
    int fd = open(device, O_RDWR | O_DIRECT);
    thread->failed = fd < 0;
    for (uint32_t version = 1; !thread->failed && access(stop, F_OK); version++) {
        uint64_t count = 1 + below(thread, below(thread, 4) ? 16 : MOST);
        uint64_t first = thread->first + below(thread, thread->count - count + 1);
        if (below(thread, 3) == 0) {
            thread->failed = verify(fd, buffer, first, count);
            thread->reads++;
            continue;
        }
        for (uint64_t i = 0; i < count; i++) {
            put(buffer + i * BLOCK, first + i, version);
            versions[first + i] = version;
        }
        ssize_t put = pwrite(fd, buffer, count * BLOCK, first * BLOCK);
        if (put != (ssize_t)(count * BLOCK) || (below(thread, 16) == 0 && fdatasync(fd))) {
            printf("blocks: writing %llu of %llu: %zd, %s\n", (long long)first, (long long)count, put, strerror(errno));
            thread->failed = 1;
        }
        if (++thread->writes == 20)
            printf("blocks: thread of %llu has written 20 times\n", (long long)thread->first);
    }
    for (uint64_t at = 0; !thread->failed && at < thread->count; at += MOST)
        thread->failed = verify(fd, buffer, thread->first + at, thread->count - at < MOST ? thread->count - at : MOST);
    close(fd);
    free(buffer);
    return NULL;
}

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    int writes = argc == 7 && !strcmp(argv[1], "write");
    if (!writes && !(argc == 4 && !strcmp(argv[1], "check"))) {
        fprintf(stderr, "usage: blocks write DEVICE THREADS SEED TABLE STOP, or blocks check DEVICE TABLE\n");
        return 2;
    }
    device = argv[2];
    int fd = open(device, O_RDWR | O_DIRECT), failed = 0;
    if (fd < 0 || ioctl(fd, BLKGETSIZE64, &blocks)) {
        perror(device);
        return 2;
    }
    blocks /= BLOCK;
    versions = calloc(blocks, sizeof *versions);
    FILE *table = fopen(argv[writes ? 5 : 3], writes ? "w" : "r");
    if (!table) {
        perror(argv[writes ? 5 : 3]);
        return 2;
    }
    if (writes) {
        int count = atoi(argv[3]);
        struct thread threads[THREADS] = {0};
        stop = argv[6];
        for (int i = 0; i < count && i < THREADS; i++) {
            threads[i].state = (atoi(argv[4]) + i + 1) * 0x9e3779b97f4a7c15ull;
            threads[i].first = blocks / count * i;
            threads[i].count = blocks / count;
            pthread_create(&threads[i].thread, NULL, work, &threads[i]);
        }
        for (int i = 0; i < count && i < THREADS; i++) {
            pthread_join(threads[i].thread, NULL);
            printf("blocks: %llu writes, %llu reads\n", (long long)threads[i].writes, (long long)threads[i].reads);
            failed |= threads[i].failed;
        }
        failed |= fwrite(versions, sizeof *versions, blocks, table) != blocks;
    } else {
        uint8_t *buffer = aligned_alloc(4096, MOST * BLOCK);
        failed = fread(versions, sizeof *versions, blocks, table) != blocks;
        for (uint64_t at = 0; !failed && at < blocks; at += MOST)
            failed = verify(fd, buffer, at, blocks - at < MOST ? blocks - at : MOST);
    }
    failed |= fclose(table) != 0;
    printf("blocks: %s\n", failed ? "failed" : "all well");
    return failed;
}
