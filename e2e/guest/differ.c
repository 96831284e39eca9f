/*
 * Sends one random sequence of admin and I/O commands to two NVMe controllers, by Linux's passthrough, and
 * compares status, result and data of each.
 *
 *   differ SEED COUNT LIST FIRST FIRST-NAMESPACE SECOND SECOND-NAMESPACE
 *
 * The devices are /dev/nvme0, /dev/ng0n1 and so on. Each line of LIST is a pattern of the shell that a
 * difference may match, then a tab and why it may be. Prints each difference that none matches, and what was
 * sent; exits 0 if there is none, and both namespaces have the same content.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <linux/nvme_ioctl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { BLOCK = 512, MOST = 128 * BLOCK, DEVICES = 2, COPIES = 2048 };

struct command {
    int admin;
    uint8_t opcode;
    uint32_t namespace, dword[16];
    uint32_t len; /* of data */
    int to_host;
    char name[120]; /* what of it decides how it ends */
};

struct outcome {
    int status;
    uint32_t result;
};

static int controller[DEVICES], space[DEVICES];
static uint8_t *sent, *got[DEVICES];
static uint64_t blocks;
static uint32_t seed;
static int unlisted, shown;

static uint64_t state;
static uint32_t random32(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state >> 16;
}
static uint32_t below(uint32_t limit) { return random32() % limit; }
static int one_in(uint32_t n) { return below(n) == 0; }
#define ONE_OF(...) \
    ({ static const uint32_t of[] = {__VA_ARGS__}; of[below(sizeof of / sizeof *of)]; })

static void die(const char *format, ...)
{
    va_list list;
    va_start(list, format);
    printf("seed %u: ", seed);
    vprintf(format, list);
    printf(": %s\n", strerror(errno));
    exit(2);
}

/* --- the list of what may differ */
static struct entry { char *pattern, *why; unsigned hits; } *entries;
static int entry_count;

static void load(const char *path)
{
    FILE *file = fopen(path, "r");
    char *line = NULL, *tab;
    size_t size = 0;
    if (!file)
        die("%s", path);
    while (getline(&line, &size, file) > 0) {
        line[strcspn(line, "\n")] = 0;
        if (!*line || *line == '#')
            continue;
        tab = strchr(line, '\t');
        if (!tab || !tab[1])
            die("%s: no reason: %s", path, line);
        *tab = 0;
        entries = realloc(entries, (entry_count + 1) * sizeof *entries);
        entries[entry_count++] = (struct entry){strdup(line), strdup(tab + 1), 0};
    }
    free(line);
    fclose(file);
}

static void differs(int number, const struct command *command, const char *format, ...)
{
    char what[400], line[600];
    va_list list;
    va_start(list, format);
    vsnprintf(what, sizeof what, format, list);
    va_end(list);
    snprintf(line, sizeof line, "%s: %s", command->name, what);
    for (int i = 0; i < entry_count; i++) {
        if (fnmatch(entries[i].pattern, line, FNM_EXTMATCH) == 0) {
            entries[i].hits++;
            return;
        }
    }
    unlisted++;
    if (shown++ < 300)
        printf("differs (command %d, seed %u): %s\n", number, seed, line);
}

/* --- what is in the structures that both give */
static const struct field { uint32_t structure; int at, len; const char *name; } fields[] = {
#define C 0x0601
    {C, 0, 2, "VID"}, {C, 2, 2, "SSVID"}, {C, 4, 20, "SN"}, {C, 24, 40, "MN"}, {C, 64, 8, "FR"},
    {C, 72, 1, "RAB"}, {C, 73, 3, "IEEE"}, {C, 76, 1, "CMIC"}, {C, 77, 1, "MDTS"}, {C, 78, 2, "CNTLID"},
    {C, 80, 4, "VER"}, {C, 84, 4, "RTD3R"}, {C, 88, 4, "RTD3E"}, {C, 92, 4, "OAES"}, {C, 96, 4, "CTRATT"},
    {C, 100, 2, "RRLS"}, {C, 111, 1, "CNTRLTYPE"}, {C, 112, 16, "FGUID"}, {C, 128, 6, "CRDT"},
    {C, 256, 2, "OACS"}, {C, 258, 1, "ACL"}, {C, 259, 1, "AERL"}, {C, 260, 1, "FRMW"}, {C, 261, 1, "LPA"},
    {C, 262, 1, "ELPE"}, {C, 263, 1, "NPSS"}, {C, 264, 1, "AVSCC"}, {C, 265, 1, "APSTA"},
    {C, 266, 2, "WCTEMP"}, {C, 268, 2, "CCTEMP"}, {C, 270, 2, "MTFA"}, {C, 280, 32, "NVMCAP"},
    {C, 319, 1, "FWUG"}, {C, 320, 2, "KAS"}, {C, 328, 4, "SANICAP"}, {C, 512, 1, "SQES"}, {C, 513, 1, "CQES"},
    {C, 514, 2, "MAXCMD"}, {C, 516, 4, "NN"}, {C, 520, 2, "ONCS"}, {C, 522, 2, "FUSES"}, {C, 524, 1, "FNA"},
    {C, 525, 1, "VWC"}, {C, 526, 2, "AWUN"}, {C, 528, 2, "AWUPF"}, {C, 530, 1, "ICSVSCC"}, {C, 531, 1, "NWPC"},
    {C, 532, 2, "ACWU"}, {C, 534, 2, "OCFS"}, {C, 536, 4, "SGLS"}, {C, 540, 4, "MNAN"},
    {C, 768, 256, "SUBNQN"}, {C, 2048, 32, "PSD0"},
#define N 0x0600
    {N, 0, 8, "NSZE"}, {N, 8, 8, "NCAP"}, {N, 16, 8, "NUSE"}, {N, 24, 1, "NSFEAT"}, {N, 25, 1, "NLBAF"},
    {N, 26, 1, "FLBAS"}, {N, 27, 1, "MC"}, {N, 28, 1, "DPC"}, {N, 29, 1, "DPS"}, {N, 30, 1, "NMIC"},
    {N, 31, 1, "RESCAP"}, {N, 32, 1, "FPI"}, {N, 33, 1, "DLFEAT"}, {N, 34, 2, "NAWUN"}, {N, 36, 2, "NAWUPF"},
    {N, 38, 2, "NACWU"}, {N, 40, 6, "NABS"}, {N, 46, 2, "NOIOB"}, {N, 48, 16, "NVMCAP"}, {N, 64, 2, "NPWG"},
    {N, 66, 2, "NPWA"}, {N, 68, 2, "NPDG"}, {N, 70, 2, "NPDA"}, {N, 72, 2, "NOWS"}, {N, 74, 2, "MSSRL"},
    {N, 76, 4, "MCL"}, {N, 80, 1, "MSRC"}, {N, 99, 1, "NSATTR"}, {N, 104, 16, "NGUID"}, {N, 120, 8, "EUI64"},
    {N, 128, 256, "LBAF"},
};

static void compare_data(int number, const struct command *command)
{
    uint32_t structure = command->admin ? command->opcode << 8 | (command->dword[10] & 0xff) : 0;
    for (uint32_t at = 0; at < command->len;) {
        uint32_t from = at & ~3u, len = 4;
        char name[20];
        if (got[0][at] == got[1][at]) {
            at++;
            continue;
        }
        if (!command->admin) {
            differs(number, command, "data of %u bytes, from %u on", command->len, at);
            return;
        }
        snprintf(name, sizeof name, "%u", from);
        for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
            const struct field *field = &fields[i];
            if (field->structure == structure && (int)at >= field->at && (int)at < field->at + field->len) {
                snprintf(name, sizeof name, "%s", field->name);
                from = field->at;
                len = field->len;
            }
        }
        uint64_t value[DEVICES] = {0};
        for (int i = 0; i < DEVICES; i++)
            memcpy(&value[i], got[i] + from, len < 8 ? len : 8);
        differs(number, command, "data %s: %#llx, %#llx", name, (long long)value[0], (long long)value[1]);
        at = from + len;
    }
}

static struct outcome send_to(int device, const struct command *command)
{
    struct nvme_passthru_cmd raw = {
        .opcode = command->opcode, .nsid = command->namespace, .cdw2 = command->dword[2],
        .cdw3 = command->dword[3], .cdw10 = command->dword[10], .cdw11 = command->dword[11],
        .cdw12 = command->dword[12], .cdw13 = command->dword[13], .cdw14 = command->dword[14],
        .cdw15 = command->dword[15], .data_len = command->len,
        .addr = command->len ? (uintptr_t)(command->to_host ? got[device] : sent) : 0,
        .timeout_ms = 60000,
    };
    int fd = command->admin ? controller[device] : space[device];
    int status = ioctl(fd, command->admin ? NVME_IOCTL_ADMIN_CMD : NVME_IOCTL_IO_CMD, &raw);
    return (struct outcome){status < 0 ? -errno : status, raw.result};
}

/* Both get it. Returns whether it was done by both. */
static int send(int number, const struct command *command)
{
    struct outcome outcome[DEVICES];
    for (int i = 0; i < DEVICES; i++) {
        memset(got[i], 0xa5, MOST);
        outcome[i] = send_to(i, command);
    }
    if (outcome[0].status != outcome[1].status)
        differs(number, command, "status %#x, %#x", outcome[0].status, outcome[1].status);
    if (outcome[0].status || outcome[1].status)
        return 0;
    if (outcome[0].result != outcome[1].result)
        differs(number, command, "result %#x, %#x", outcome[0].result, outcome[1].result);
    if (command->to_host)
        compare_data(number, command);
    return 1;
}

static void fill(uint32_t len)
{
    for (uint32_t at = 0; at < len; at += 4) {
        uint32_t value = random32();
        memcpy(sent + at, &value, 4);
    }
}

#define NAME(...) snprintf(command->name, sizeof command->name, __VA_ARGS__)

/* --- admin commands */
static uint32_t any_namespace(void)
{
    return ONE_OF(0, 1, 1, 1, 2, 16, 0x7fffffff, 0xfffffffd, 0xfffffffe, 0xffffffff);
}

static void identify(struct command *command)
{
    uint32_t cns = one_in(8) ? below(256) : ONE_OF(0, 1, 2, 3, 4, 5, 6, 7, 8, 0x10, 0x11, 0x12, 0x13, 0x14,
        0x15, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x1b, 0x1c);
    uint32_t set = one_in(6) ? ONE_OF(1, 2, 3, 0x30, 0xff) : 0;
    uint32_t id = one_in(6) ? ONE_OF(0, 1, 2, 0xffff) : 0;
    command->opcode = 0x06;
    command->namespace = any_namespace();
    command->dword[10] = cns | id << 16;
    command->dword[11] = set << 24;
    command->len = 4096;
    command->to_host = 1;
    NAME("Identify %02x, CSI %x, CNTID %x, namespace %x", cns, set, id, command->namespace);
}

static void get_log(struct command *command)
{
    uint32_t page = one_in(8) ? below(256) : ONE_OF(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0xa, 0xb, 0xc, 0xd, 0xe, 0xf,
        0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x70, 0x80, 0x81);
    uint32_t offset = one_in(3) ? ONE_OF(4, 6, 64, 508, 512, 1024, 4092, 4096, 8192) : 0;
    uint32_t beyond = one_in(10);
    uint32_t set = one_in(8) ? ONE_OF(1, 2, 0x30) : 0;
    command->len = ONE_OF(4, 64, 512, 512, 1024, 4096, 4096, 8192);
    command->opcode = 0x02;
    command->namespace = one_in(2) ? 0xffffffff : any_namespace();
    command->dword[10] = page | one_in(2) << 15 | (command->len / 4 - 1) << 16;
    command->dword[12] = offset;
    command->dword[13] = beyond;
    command->dword[14] = set << 24;
    command->to_host = 1;
    NAME("Get Log Page %02x, CSI %x, offset %x%x, %u bytes, namespace %x", page, set, beyond, offset,
        command->len, command->namespace);
}

static void get_features(struct command *command)
{
    uint32_t feature = one_in(8) ? below(256) : below(0x20), select = one_in(2) ? below(8) : 0;
    /* Timestamp, and what has a buffer. */
    command->len = feature == 0x0e ? 8 : 4096;
    command->opcode = 0x0a;
    command->namespace = one_in(2) ? 0 : any_namespace();
    command->dword[10] = feature | select << 8;
    command->dword[11] = one_in(2) ? 0 : ONE_OF(1, 2, 64, 65, 0xffff, 1 << 16, 0xf << 16, 1 << 20, 2 << 20);
    command->to_host = 1;
    NAME("Get Features %02x, select %x, dword 11 %x, namespace %x", feature, select, command->dword[11],
        command->namespace);
}

static void set_features(struct command *command)
{
    uint32_t feature = one_in(8) ? below(256) : below(0x20), save = one_in(4), value = 0;
    if (feature == 0x1e)
        feature = 0x1f; /* It ends QEMU 11.1, by an assertion. */
    switch (feature) {
    case 0x01: value = ONE_OF(0, 1, 7, 0x01020303); break;
    case 0x02: value = ONE_OF(0, 1, 0x1f, 0x20); break;
    case 0x04: value = ONE_OF(0x150, 0x157, 0x100000, 0x100100, 0x10157, 0x200157, 0xf0157); break;
    case 0x05: value = ONE_OF(0, 0x100); break;
    case 0x06: value = below(2); break;
    case 0x07: value = ONE_OF(0, 0x10001, 0xffff, 0xffff0000, 0x003f003f); break;
    case 0x08: value = ONE_OF(0, 1, 0x102); break;
    case 0x09: value = ONE_OF(0, 1, 0x10001, 64, 65, 0xffff); break;
    case 0x0a: value = below(2); break;
    case 0x0b: value = ONE_OF(0, 0x100, 0x1ff, 0x1f, 0x200, 0x900, 1u << 31); break;
    default: value = below(4); break;
    }
    command->opcode = 0x09;
    command->len = feature == 0x0e ? 8 : feature == 0x16 ? 512 : 0;
    memset(sent, 0, 512);
    command->namespace = one_in(2) ? 0 : any_namespace();
    command->dword[10] = feature | save << 31;
    command->dword[11] = value;
    NAME("Set Features %02x, save %u, dword 11 %x, namespace %x", feature, save, value, command->namespace);
}

/* One thing is wrong with it, so that nothing comes of it. */
static void make_queue(struct command *command)
{
    uint32_t completion = below(2), id = 40, size = 15, contiguous = 1, vector = 0, of = 40;
    command->opcode = completion ? 0x05 : 0x01;
    switch (below(completion ? 4 : 3)) {
    case 0: id = ONE_OF(0, 1, 65, 0xffff); break;
    case 1: size = ONE_OF(0, 0xffff); break;
    case 2: contiguous = 0; break;
    default: vector = ONE_OF(65, 66, 0xffff); break;
    }
    if (!completion)
        of = id == 40 && size == 15 && contiguous ? ONE_OF(0, 40, 65, 0xffff) : 1;
    command->dword[10] = id | size << 16;
    command->dword[11] = contiguous | (completion ? 2 | vector << 16 : of << 16);
    command->len = 4096;
    NAME("Create I/O %s Queue %u, size %x, PC %u, %s %x", completion ? "Completion" : "Submission", id, size,
        contiguous, completion ? "vector" : "queue", completion ? vector : of);
}

static void admin(struct command *command)
{
    uint32_t kind = below(100);
    command->admin = 1;
    if (kind < 30)
        identify(command);
    else if (kind < 55)
        get_log(command);
    else if (kind < 70)
        get_features(command);
    else if (kind < 82)
        set_features(command);
    else if (kind < 86)
        make_queue(command);
    else if (kind < 89) {
        command->opcode = ONE_OF(0x00, 0x04);
        command->dword[10] = ONE_OF(0, 40, 64, 65, 0xffff);
        NAME("Delete I/O %s Queue %u", command->opcode ? "Completion" : "Submission", command->dword[10]);
    } else if (kind < 92) {
        command->opcode = 0x08;
        command->dword[10] = ONE_OF(1, 2, 40, 65, 0xffff) | 0xfff0 << 16;
        NAME("Abort, queue %x", command->dword[10] & 0xffff);
    } else if (kind < 94) {
        uint32_t format = ONE_OF(0, 0, 8, 15), erase = below(2);
        command->opcode = 0x80;
        command->namespace = ONE_OF(1, 1, 0, 2, 0xfffffffe);
        command->dword[10] = format | erase << 9;
        NAME("Format NVM %x, erase %x, namespace %x", format, erase, command->namespace);
    } else {
        /* What either may have, asked for what neither has. Not sent: Asynchronous Event Request, which would
         * not end, and Doorbell Buffer Config, whose buffers must stay. */
        command->opcode = one_in(2) ? ONE_OF(0x0d, 0x10, 0x11, 0x14, 0x18, 0x19, 0x1a, 0x1d, 0x20, 0x24, 0x81,
            0x82, 0x86) : 0xc0 + below(0x40);
        command->dword[10] = command->opcode == 0x0d ? 0xf : 0;
        command->namespace = one_in(2);
        command->to_host = (command->opcode & 3) == 2;
        NAME("admin opcode %02x, namespace %x", command->opcode, command->namespace);
    }
}

/* --- I/O commands */
static const char *place(uint64_t first, uint64_t count)
{
    return count > blocks || first > blocks - count ? "beyond the end" : "inside";
}

static void io(struct command *command)
{
    /* Few places, so that commands meet. What is copied comes from the lower ones to the upper ones: what
     * becomes of a range that is copied onto itself is not told. */
    uint64_t first = below(1024) + (one_in(3) ? COPIES : 0), count = 1 + below(one_in(4) ? 128 : 16);
    uint32_t kind = below(100), fua = one_in(4);
    if (one_in(10)) {
        switch (below(5)) {
        case 0: first = blocks - count; break;
        case 1: first = blocks - count + 1; break;
        case 2: first = blocks; break;
        case 3: first = ~0ull; break;
        default: first = ~0ull - count + 1; break;
        }
    }
    command->namespace = 1;
    command->dword[10] = first;
    command->dword[11] = first >> 32;
    command->dword[12] = (count - 1) | fua << 30;
    if (kind < 30) {
        command->opcode = 0x02;
        command->to_host = 1;
        command->len = count * BLOCK;
        NAME("Read, %s", place(first, count));
    } else if (kind < 55) {
        command->opcode = 0x01;
        command->len = count * BLOCK;
        fill(command->len);
        NAME("Write, %s", place(first, count));
    } else if (kind < 65) {
        /* What is there, or with one byte of it changed. */
        int changed = one_in(2);
        struct command read = *command;
        read.opcode = 0x02;
        read.to_host = 1;
        command->len = read.len = count * BLOCK;
        if (send_to(0, &read).status == 0)
            memcpy(sent, got[0], command->len);
        if (changed)
            sent[below(command->len)] ^= 1 << below(8);
        command->opcode = 0x05;
        NAME("Compare, %s, %s", changed ? "changed" : "the same", place(first, count));
    } else if (kind < 72) {
        uint32_t deallocate = below(2);
        if (one_in(3))
            count = ONE_OF(1, 1024, 4096, 65536);
        command->opcode = 0x08;
        command->dword[12] = (count - 1) | fua << 30 | deallocate << 25;
        NAME("Write Zeroes, deallocate %u, %llu blocks, %s", deallocate, (long long)count, place(first, count));
    } else if (kind < 79) {
        if (one_in(3))
            count = ONE_OF(1, 1024, 1025, 65536);
        command->opcode = 0x0c;
        command->dword[12] = count - 1;
        NAME("Verify, %llu blocks, %s", (long long)count, place(first, count));
    } else if (kind < 86) {
        uint32_t ranges = 1 + below(8), most = one_in(6) ? 64 : 8, format = one_in(8) ? 1 + below(4) : 0;
        uint64_t sum = 0;
        memset(sent, 0, 4096);
        for (uint32_t i = 0; i < ranges; i++) {
            uint64_t from = below(1024);
            uint16_t part = 1 + below(most), field = part - 1;
            sum += part;
            memcpy(sent + 32 * i + 8, &from, 8);
            memcpy(sent + 32 * i + 16, &field, 2);
        }
        command->opcode = 0x19;
        command->len = ranges * 32;
        /* Nothing of it is beyond the end: QEMU 11.1 ends then, by an assertion of its accounts. */
        first = command->dword[10] = COPIES + below(1024);
        command->dword[11] = 0;
        command->dword[12] = (ranges - 1) | format << 8 | fua << 30;
        NAME("Copy, format %u, %s blocks", format, sum > 128 ? "more than 128" : "at most 128");
    } else if (kind < 91) {
        uint32_t ranges = 1 + below(4), attributes = one_in(4) ? below(8) : 4;
        const char *where = "inside";
        memset(sent, 0, 4096);
        for (uint32_t i = 0; i < ranges; i++) {
            uint64_t from = one_in(20) ? blocks - below(4) : below(1024);
            uint32_t part = below(64);
            if (from + part > blocks)
                where = "beyond the end";
            memcpy(sent + 16 * i + 4, &part, 4);
            memcpy(sent + 16 * i + 8, &from, 8);
        }
        command->opcode = 0x09;
        command->len = ranges * 16;
        command->dword[10] = ranges - 1;
        command->dword[11] = attributes;
        command->dword[12] = 0;
        NAME("Dataset Management, attributes %x, %s", attributes, where);
    } else if (kind < 94) {
        command->opcode = 0x00;
        command->dword[10] = command->dword[11] = command->dword[12] = 0;
        NAME("Flush");
    } else {
        command->opcode = one_in(2) ? ONE_OF(0x04, 0x0d, 0x0e, 0x11, 0x12, 0x15, 0x1d) : 0x80 + below(0x80);
        command->dword[10] = command->dword[11] = command->dword[12] = 0;
        command->to_host = (command->opcode & 3) == 2;
        NAME("I/O opcode %02x", command->opcode);
    }
}

static void write_again(int number, uint64_t first, uint32_t count)
{
    struct command write = {.opcode = 0x01, .namespace = 1, .name = "Write again"};
    for (; count && first < blocks; first++, count--) {
        memcpy(&write.dword[10], &first, 8);
        write.len = BLOCK;
        fill(write.len);
        send(number, &write);
    }
}

/* Writes what the specifications leave open after a command. */
static void settle(int number, const struct command *command, int done)
{
    uint8_t ranges[256];
    memcpy(ranges, sent, sizeof ranges);
    if (command->opcode == 0x09) {
        /* What is read from deallocated blocks: DLFEAT. */
        for (uint32_t at = 0; at < command->len; at += 16) {
            uint32_t count;
            uint64_t first;
            memcpy(&count, ranges + at + 4, 4);
            memcpy(&first, ranges + at + 8, 8);
            write_again(number, first, count);
        }
    } else if (command->opcode == 0x19 && !done) {
        /* Some ranges may have been copied. */
        uint64_t first = command->dword[10] | (uint64_t)command->dword[11] << 32;
        uint32_t sum = 0;
        for (uint32_t at = 0; at < command->len; at += 32)
            sum += ranges[at + 16] + 1;
        write_again(number, first, sum);
    }
}

int main(int argc, char **argv)
{
    if (argc != 8) {
        fprintf(stderr, "usage: differ SEED COUNT LIST FIRST FIRST-NAMESPACE SECOND SECOND-NAMESPACE\n");
        return 2;
    }
    seed = strtoul(argv[1], NULL, 0);
    int count = atoi(argv[2]);
    setvbuf(stdout, NULL, _IOLBF, 0);
    state = seed * 0x9e3779b97f4a7c15ull + 1;
    load(argv[3]);
    for (int i = 0; i < DEVICES; i++) {
        controller[i] = open(argv[4 + 2 * i], O_RDWR);
        space[i] = open(argv[5 + 2 * i], O_RDWR);
        if (controller[i] < 0 || space[i] < 0)
            die("%s, %s", argv[4 + 2 * i], argv[5 + 2 * i]);
    }
    sent = aligned_alloc(4096, MOST);
    got[0] = aligned_alloc(4096, MOST);
    got[1] = aligned_alloc(4096, MOST);
    struct command size = {.admin = 1, .opcode = 0x06, .namespace = 1, .len = 4096, .to_host = 1};
    for (int i = 0; i < DEVICES; i++) {
        uint64_t has;
        if (send_to(i, &size).status)
            die("Identify Namespace of %s", argv[4 + 2 * i]);
        memcpy(&has, got[i], 8);
        if (i > 0 && has != blocks)
            die("%llu and %llu blocks", (long long)blocks, (long long)has);
        blocks = has;
    }
    printf("seed %u, %d commands, disks of %llu blocks\n", seed, count, (long long)blocks);
    for (int number = 0; number < count; number++) {
        struct command command = {0};
        if (below(100) < 50)
            admin(&command);
        else
            io(&command);
        int done = send(number, &command);
        if (!command.admin)
            settle(number, &command, done);
        else if (command.opcode == 0x09 && command.dword[10] >> 31) {
            /* Who cannot save has not changed it either: without Save both have the value again. */
            command.dword[10] &= ~(1u << 31);
            snprintf(command.name, sizeof command.name, "Set Features %02x, save 0, dword 11 %x, namespace %x",
                command.dword[10] & 0xff, command.dword[11], command.namespace);
            send(number, &command);
        }
    }
    for (uint64_t first = 0; first < blocks; first += 128) {
        struct command read = {.opcode = 0x02, .namespace = 1, .len = MOST, .to_host = 1};
        read.dword[10] = first;
        read.dword[12] = 127;
        snprintf(read.name, sizeof read.name, "Read at the end, block %llu", (long long)first);
        send(count, &read);
    }
    for (int i = 0; i < entry_count; i++)
        printf("%6u times: %s\n", entries[i].hits, entries[i].pattern);
    printf("%d differences are not in the list\n", unlisted);
    return unlisted != 0;
}
