/* Preloaded by test_syncs.py and test_disk.py: logs what a process does to its files, or makes its disk full.
 *
 * DRIP_TRACE_LOG    file for the records; every record is a header and, for a write, the bytes.
 * DRIP_TRACE_MATCH  only files whose path contains this text.
 * DRIP_TRACE_FULL   while a file of this name exists, writes that would extend a file fail with ENOSPC.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_FD 1024

struct record { char kind; char name[15]; int64_t offset; int64_t length; };

static char names[MAX_FD][16];
static int log_fd = -1;

static ssize_t (*real_pwrite)(int, const void *, size_t, off64_t);
static ssize_t (*real_write)(int, const void *, size_t);
static int (*real_ftruncate)(int, off64_t);
static int (*real_fsync)(int);
static int (*real_fdatasync)(int);
static int (*real_open)(const char *, int, ...);
static int (*real_unlink)(const char *);
static int (*real_close)(int);

__attribute__((constructor)) static void start(void) {
    real_pwrite = dlsym(RTLD_NEXT, "pwrite64");
    real_write = dlsym(RTLD_NEXT, "write");
    real_ftruncate = dlsym(RTLD_NEXT, "ftruncate64");
    real_fsync = dlsym(RTLD_NEXT, "fsync");
    real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
    real_open = dlsym(RTLD_NEXT, "open64");
    real_unlink = dlsym(RTLD_NEXT, "unlink");
    real_close = dlsym(RTLD_NEXT, "close");
    const char *path = getenv("DRIP_TRACE_LOG");
    if (path) log_fd = real_open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

static void note(char kind, const char *name, int64_t offset, int64_t length, const void *data) {
    if (log_fd < 0 || !name[0]) return;
    struct record record = {kind, "", offset, length};
    strncpy(record.name, name, sizeof record.name - 1);
    real_write(log_fd, &record, sizeof record);
    if (data) real_write(log_fd, data, length);
}

static const char *tail(const char *path) {
    const char *match = getenv("DRIP_TRACE_MATCH");
    const char *found = match ? strstr(path, match) : NULL;
    if (!found) return "";
    const char *slash = strrchr(found, '/');
    return slash ? slash + 1 : found;
}

static int disk_is_full(int fd, int64_t end) {
    const char *flag = getenv("DRIP_TRACE_FULL");
    struct stat status;
    if (!flag || fd < 0 || fd >= MAX_FD || !names[fd][0] || access(flag, F_OK) != 0) return 0;
    return fstat(fd, &status) == 0 && end > status.st_size;
}

static int opened(const char *path, int fd) {
    if (fd >= 0 && fd < MAX_FD) {
        names[fd][0] = 0;
        strncpy(names[fd], tail(path), sizeof names[fd] - 1);
    }
    return fd;
}

int open64(const char *path, int flags, ...) {
    va_list list;
    va_start(list, flags);
    int mode = va_arg(list, int);
    va_end(list);
    return opened(path, real_open(path, flags, mode));
}

int open(const char *path, int flags, ...) {
    va_list list;
    va_start(list, flags);
    int mode = va_arg(list, int);
    va_end(list);
    return opened(path, real_open(path, flags, mode));
}

int close(int fd) {
    if (fd >= 0 && fd < MAX_FD) names[fd][0] = 0;
    return real_close(fd);
}

ssize_t pwrite64(int fd, const void *data, size_t length, off64_t offset) {
    if (disk_is_full(fd, offset + (int64_t)length)) { errno = ENOSPC; return -1; }
    ssize_t done = real_pwrite(fd, data, length, offset);
    if (done > 0 && fd >= 0 && fd < MAX_FD) note('w', names[fd], offset, done, data);
    return done;
}

ssize_t write(int fd, const void *data, size_t length) {
    ssize_t done = real_write(fd, data, length);
    /* Appended at the end: only the file of acknowledgements is written so. */
    if (done > 0 && fd >= 0 && fd < MAX_FD) note('a', names[fd], -1, done, data);
    return done;
}

int ftruncate64(int fd, off64_t length) {
    int result = real_ftruncate(fd, length);
    if (result == 0 && fd >= 0 && fd < MAX_FD) note('t', names[fd], length, 0, NULL);
    return result;
}

int fsync(int fd) {
    int result = real_fsync(fd);
    if (result == 0 && fd >= 0 && fd < MAX_FD) note('s', names[fd], 0, 0, NULL);
    return result;
}

int fdatasync(int fd) {
    int result = real_fdatasync(fd);
    if (result == 0 && fd >= 0 && fd < MAX_FD) note('s', names[fd], 0, 0, NULL);
    return result;
}

int unlink(const char *path) {
    int result = real_unlink(path);
    if (result == 0) note('u', tail(path), 0, 0, NULL);
    return result;
}
