/*
 * Drives an edu device (1234:11e8) from inside a guest: registers, factorial, DMA both ways,
 * interrupts, reset.
 *
 *   edu uio [--reference]    by uio_pci_generic and physical addresses: INTx
 *   edu vfio [--reference]   by the guest's own VFIO, which needs an IOMMU in it: INTx, MSI, FLR
 *   edu dma-forever          as uio; DMA until the machine is stopped
 *
 * --reference is for QEMU's own edu: no function-level reset. --device ADDRESS says which one of several.
 * Prints a line for each step; exits 0 if all went well.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <poll.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
    ID = 0x00, LIVENESS = 0x04, FACTORIAL = 0x08, STATUS = 0x20, IRQ_STATUS = 0x24,
    IRQ_RAISE = 0x60, IRQ_ACK = 0x64,
    DMA_SOURCE = 0x80, DMA_DESTINATION = 0x88, DMA_COUNT = 0x90, DMA_COMMAND = 0x98,
    BUFFER = 0x40000,
};

/* By VFIO: the device, and where BAR 0 and configuration space are in it. */
static int device = -1;
static uint64_t bar, config;
static int container = -1;
/* By uio: BAR 0, configuration space, and the interrupt. */
static volatile uint8_t *mmio;
static int config_file = -1, uio = -1;

static void fail(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    printf("edu: FAILED: ");
    vprintf(format, args);
    printf(" (errno %d)\n", errno);
    exit(1);
}

static uint32_t get(uint64_t offset)
{
    uint32_t value;
    if (mmio) return *(volatile uint32_t *)(mmio + offset);
    if (pread(device, &value, 4, bar + offset) != 4) fail("read of register %#lx", offset);
    return value;
}

static void put(uint64_t offset, uint32_t value)
{
    if (mmio) *(volatile uint32_t *)(mmio + offset) = value;
    else if (pwrite(device, &value, 4, bar + offset) != 4) fail("write of register %#lx", offset);
}

static void put_file(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY);
    if (fd < 0 || write(fd, text, strlen(text)) < 0) fail("write of %s", path);
    close(fd);
}

static int read_hex(const char *address, const char *name)
{
    char path[256];
    unsigned value = 0;
    snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/%s", address, name);
    FILE *file = fopen(path, "r");
    if (!file || fscanf(file, "%x", &value) != 1) fail("read of %s", path);
    fclose(file);
    return value;
}

static char *find(const char *wanted)
{
    DIR *dir = opendir("/sys/bus/pci/devices");
    struct dirent *entry;
    while (dir && (entry = readdir(dir)))
        if (entry->d_name[0] != '.' && (!wanted || !strcmp(entry->d_name, wanted)) && read_hex(entry->d_name, "vendor") == 0x1234 &&
            read_hex(entry->d_name, "device") == 0x11e8)
            return strdup(entry->d_name);
    fail("there is no edu device");
    return NULL;
}

static void bind_driver(const char *address, const char *driver)
{
    char path[256];
    snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/driver_override", address);
    put_file(path, driver);
    put_file("/sys/bus/pci/drivers_probe", address);
}

static void attach_vfio(const char *address)
{
    char path[256], group[256], target[256] = "";
    bind_driver(address, "vfio-pci");
    snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/iommu_group", address);
    if (readlink(path, target, sizeof target - 1) < 0) fail("no group: has the guest an IOMMU?");
    snprintf(group, sizeof group, "/dev/vfio/%s", strrchr(target, '/') + 1);
    container = open("/dev/vfio/vfio", O_RDWR);
    int fd = open(group, O_RDWR);
    if (container < 0 || fd < 0) fail("open of %s", group);
    if (ioctl(fd, VFIO_GROUP_SET_CONTAINER, &container)) fail("VFIO_GROUP_SET_CONTAINER");
    if (ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU)) fail("VFIO_SET_IOMMU");
    device = ioctl(fd, VFIO_GROUP_GET_DEVICE_FD, address);
    if (device < 0) fail("VFIO_GROUP_GET_DEVICE_FD %s", address);
    struct vfio_region_info info = { .argsz = sizeof info, .index = VFIO_PCI_BAR0_REGION_INDEX };
    if (ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &info)) fail("region info of BAR 0");
    bar = info.offset;
    info.index = VFIO_PCI_CONFIG_REGION_INDEX;
    if (ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &info)) fail("region info of config space");
    config = info.offset;
}

static void attach_uio(const char *address)
{
    char path[256];
    bind_driver(address, "uio_pci_generic");
    snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/resource0", address);
    int fd = open(path, O_RDWR);
    mmio = fd < 0 ? MAP_FAILED : mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (mmio == MAP_FAILED) fail("mapping %s", path);
    snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/config", address);
    config_file = open(path, O_RDWR);
    uio = open("/dev/uio0", O_RDWR);
    if (config_file < 0 || uio < 0) fail("open of %s or /dev/uio0", path);
}

/* A page that the device reaches, and its address on the bus: below its 28 bits. */
static uint8_t *dma_page(uint64_t *address)
{
    static uint64_t next_iova = 0x100000;
    int pagemap = open("/proc/self/pagemap", O_RDONLY);
    for (int tries = 0; tries < 100000; tries++) {
        uint8_t *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE | MAP_LOCKED, -1, 0);
        uint64_t entry = 0;
        if (page == MAP_FAILED) break;
        page[0] = 1;
        if (container >= 0) {
            struct vfio_iommu_type1_dma_map map = { .argsz = sizeof map, .size = 4096,
                .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
                .vaddr = (uintptr_t)page, .iova = next_iova };
            if (ioctl(container, VFIO_IOMMU_MAP_DMA, &map)) fail("VFIO_IOMMU_MAP_DMA");
            *address = next_iova;
            next_iova += 4096;
            return page;
        }
        if (pread(pagemap, &entry, 8, (uintptr_t)page / 4096 * 8) != 8) break;
        *address = (entry & ((1ull << 55) - 1)) * 4096;
        if (entry >> 63 && *address && *address + 4096 <= 1ull << 28) return page;
    }
    fail("no page of memory below 256 MiB");
    return NULL;
}

static void change_command(uint16_t set, uint16_t clear)
{
    uint16_t command;
    int fd = mmio ? config_file : device;
    if (pread(fd, &command, 2, config + 4) != 2) fail("read of the command register");
    command = (command & ~clear) | set;
    if (pwrite(fd, &command, 2, config + 4) != 2) fail("write of the command register");
}

static void bus_master(int on)
{
    change_command(on ? 6 : 2, on ? 0 : 4);
}

static void wait_while(uint64_t offset, uint32_t bits, const char *what)
{
    for (int i = 0; i < 10000; i++) {
        if (!(get(offset) & bits)) return;
        usleep(1000);
    }
    fail("%s did not end", what);
}

static void dma(uint64_t from, uint64_t to, uint32_t count, uint32_t flags)
{
    put(DMA_SOURCE, from);
    put(DMA_DESTINATION, to);
    put(DMA_COUNT, count);
    put(DMA_COMMAND, 1 | flags);
    wait_while(DMA_COMMAND, 1, "a DMA transfer");
}

static int set_irq(int index, int fd)
{
    char buffer[sizeof(struct vfio_irq_set) + 4];
    struct vfio_irq_set *set = (void *)buffer;
    *set = (struct vfio_irq_set){ .argsz = sizeof buffer, .index = index, .count = 1,
        .flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER };
    memcpy(set->data, &fd, 4);
    if (fd < 0) {
        set->argsz = sizeof *set;
        set->count = 0;
        set->flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER;
    }
    return ioctl(device, VFIO_DEVICE_SET_IRQS, set);
}

static void unmask_intx(void)
{
    if (mmio) {
        change_command(0, 1 << 10); /* uio_pci_generic has disabled it there */
        return;
    }
    struct vfio_irq_set set = { .argsz = sizeof set, .index = VFIO_PCI_INTX_IRQ_INDEX, .count = 1,
        .flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_UNMASK };
    if (ioctl(device, VFIO_DEVICE_SET_IRQS, &set)) fail("unmasking INTx");
}

static void wait_irq(int fd, const char *what)
{
    struct pollfd poll_fd = { .fd = fd, .events = POLLIN };
    uint64_t count;
    int size = mmio ? 4 : 8;
    if (poll(&poll_fd, 1, 10000) != 1 || read(fd, &count, size) != size) fail("no interrupt: %s", what);
}

static void expect(const char *what, uint32_t got, uint32_t wanted)
{
    if (got != wanted) fail("%s: %#x instead of %#x", what, got, wanted);
    printf("edu: %s %#x\n", what, got);
}

static void check(int reference)
{
    expect("identification", get(ID), 0x010000ed);
    put(LIVENESS, 0x12345678);
    expect("liveness", get(LIVENESS), ~0x12345678u);
    put(FACTORIAL, 10);
    wait_while(STATUS, 1, "the factorial");
    expect("factorial of 10", get(FACTORIAL), 3628800);

    uint64_t from_at, to_at;
    uint8_t *from = dma_page(&from_at), *to = dma_page(&to_at);
    for (int i = 0; i < 4096; i++) from[i] = i * 7 + (i >> 8);
    if (!reference) {
        bus_master(0);
        dma(from_at, BUFFER, 4096, 0);
        bus_master(1);
        dma(BUFFER, to_at, 4096, 2);
        expect("DMA without bus mastering brought nothing", to[1], 0);
    }
    bus_master(1);
    memset(to, 0, 4096);
    dma(from_at, BUFFER, 4096, 0);
    dma(BUFFER + 96, to_at + 96, 4000, 2);
    if (memcmp(from + 96, to + 96, 4000)) fail("DMA: the data differ");
    expect("DMA both ways, first byte outside", to[95], 0);

    int intx = mmio ? uio : eventfd(0, EFD_CLOEXEC), msi = eventfd(0, EFD_CLOEXEC);
    if (mmio) unmask_intx();
    else if (set_irq(VFIO_PCI_INTX_IRQ_INDEX, intx)) fail("setting up INTx");
    for (uint32_t i = 1; i <= 3; i++) {
        put(IRQ_RAISE, i);
        wait_irq(intx, "INTx");
        expect("INTx, cause", get(IRQ_STATUS), i);
        put(IRQ_ACK, i);
        unmask_intx();
    }
    /* Not acknowledged: the level is still there at unmask, and must come again. */
    put(IRQ_RAISE, 8);
    wait_irq(intx, "INTx");
    unmask_intx();
    wait_irq(intx, "INTx, still asserted");
    put(IRQ_ACK, 8);
    expect("INTx again while asserted", get(IRQ_STATUS), 0);
    if (mmio) {
        printf("edu: all well\n");
        return;
    }
    if (set_irq(VFIO_PCI_INTX_IRQ_INDEX, -1)) fail("taking INTx away");

    if (set_irq(VFIO_PCI_MSI_IRQ_INDEX, msi)) fail("setting up MSI");
    put(IRQ_RAISE, 4);
    wait_irq(msi, "MSI");
    put(IRQ_ACK, 4);
    dma(from_at, BUFFER, 64, 4);
    wait_irq(msi, "MSI after DMA");
    expect("MSI after DMA, cause", get(IRQ_STATUS), 0x100);
    put(IRQ_ACK, 0x100);
    put(STATUS, 0x80);
    put(FACTORIAL, 5);
    wait_irq(msi, "MSI after a factorial");
    expect("MSI after a factorial, result", get(FACTORIAL), 120);
    put(IRQ_ACK, 1);
    if (set_irq(VFIO_PCI_MSI_IRQ_INDEX, -1)) fail("taking MSI away");

    if (!reference) {
        if (ioctl(device, VFIO_DEVICE_RESET)) fail("function-level reset");
        bus_master(1);
        expect("liveness after a reset", get(LIVENESS), 0);
    }
    printf("edu: all well\n");
}

static void dma_forever(void)
{
    uint64_t at;
    dma_page(&at);
    bus_master(1);
    for (uint64_t rounds = 1;; rounds++) {
        dma(at, BUFFER, 4096, 0);
        dma(BUFFER, at, 4096, 2);
        if (rounds == 10) printf("edu: DMA until the end\n");
    }
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    int reference = argc > 2 && !strcmp(argv[2], "--reference");
    const char *wanted = argc > 3 && !strcmp(argv[2], "--device") ? argv[3] : NULL;
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (!strcmp(what, "vfio")) {
        attach_vfio(find(wanted));
        check(reference);
    } else if (!strcmp(what, "uio")) {
        attach_uio(find(wanted));
        check(reference);
    } else if (!strcmp(what, "dma-forever")) {
        attach_uio(find(wanted));
        dma_forever();
    } else {
        fprintf(stderr, "usage: edu uio|vfio|dma-forever [--reference | --device ADDRESS]\n");
        return 2;
    }
    return 0;
}
