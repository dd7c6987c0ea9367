/*
 * Stands between a process and the files of one store: records what is done to them, and makes it fail.
 *
 * Preloaded (LD_PRELOAD). Knows the system calls by which SQLite reads and changes files: pread, read, pwrite,
 * write, ftruncate, fsync, fdatasync, unlink, rename. A file belongs to the store if its path begins with SHIM_STORE; what follows is its name
 * here ("" is the database itself). The shared memory (-shm), which SQLite makes anew, and the lock are left alone.
 *
 * SHIM_RECORD: a file to which each call is appended when it is over, in the order in which they took effect (one mutex
 * is held over the call and its record). A record is a `struct record`, then the bytes of a write. Operations:
 *
 *     w write    t truncate    s sync    d sync of the folder    u unlink    r rename
 *     f failed sync    x failed write or read (reads that work are not recorded)
 *
 * SHIM_FAIL: "CALL FILE NUMBER COUNT KIND": of the calls to FILE ("db" is the database) those from NUMBER on (from 1),
 * COUNT of them, fail. Of a sync: `eio` fails and leaves the bytes in the cache; `drop` fails and takes back everything
 * since the last sync that worked, as a system does that gives up the pages it could not write. Of a write: `eio`,
 * `enospc`, `short` (half is written, and that is said), `torn` (half is written, and that the disk is full is said by
 * the next). Of a read: `eio`, `eintr` (interrupted, nothing read), `short` (half is read). SHIM_ARM: where it is set, nothing is counted until that file exists.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define NAME_BYTES 31

struct record {
    char op;
    char name[NAME_BYTES];
    int64_t offset; /* of a write; the size of a truncate */
    int64_t bytes;  /* that follow */
};

struct undo {
    struct undo *before;
    int64_t offset;
    int64_t size_before; /* of the file */
    int64_t bytes;
    unsigned char was[];
};

static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
static int record_fd = -1;
static char store[4096], folder[4096];
static size_t store_bytes;
static char fail_call[16], fail_name[64], fail_kind[16], arm_path[4096];
static long fail_from, fail_count, seen;
static struct undo *undos;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("SHIM_STORE"), *record = getenv("SHIM_RECORD"), *plan = getenv("SHIM_FAIL");
    const char *arm = getenv("SHIM_ARM");
    if (path == NULL) return;
    snprintf(store, sizeof store, "%s", path);
    snprintf(folder, sizeof folder, "%s", path);
    *strrchr(folder, '/') = 0;
    if (arm != NULL) snprintf(arm_path, sizeof arm_path, "%s", arm);
    if (record != NULL) record_fd = open(record, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (plan != NULL) sscanf(plan, "%15s %63s %ld %ld %15s", fail_call, fail_name, &fail_from, &fail_count, fail_kind);
    if (strcmp(fail_name, "db") == 0) fail_name[0] = 0;
    store_bytes = strlen(store);
}

/* The name of a file of the store by its path, or NULL. */
static const char *name_of(const char *path) {
    static const char *const not_ours[] = {"-shm", ".lock", ".wake"};
    if (store_bytes == 0 || strncmp(path, store, store_bytes) != 0) return NULL;
    const char *name = path + store_bytes;
    size_t bytes = strlen(name);
    if (bytes >= NAME_BYTES) return NULL; /* " (deleted)", or something else's */
    for (int each = 0; each < 3; each++) {
        size_t ending = strlen(not_ours[each]);
        if (bytes >= ending && strcmp(name + bytes - ending, not_ours[each]) == 0) return NULL;
    }
    return strstr(name, "(deleted)") == NULL ? name : NULL;
}

static int path_behind(int fd, char *path, size_t room) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t bytes = readlink(link, path, room - 1);
    if (bytes <= 0) return 0;
    path[bytes] = 0;
    return 1;
}

static void note(char op, const char *name, int64_t offset, const void *body, int64_t bytes) {
    if (record_fd < 0) return;
    struct record head = {.op = op, .offset = offset, .bytes = bytes};
    strncpy(head.name, name, NAME_BYTES - 1);
    struct iovec parts[2] = {{&head, sizeof head}, {(void *)body, (size_t)bytes}};
    if (writev(record_fd, parts, bytes > 0 ? 2 : 1) != (ssize_t)(sizeof head + bytes)) _exit(97);
}

static int is_armed(void) {
    return arm_path[0] == 0 || access(arm_path, F_OK) == 0;
}

/* Whether this call is one of those that fail; counts it. */
static int fails(const char *call, const char *name) {
    if (fail_count == 0 || strcmp(call, fail_call) != 0 || strcmp(name, fail_name) != 0 || !is_armed()) return 0;
    seen++;
    return seen >= fail_from && seen < fail_from + fail_count;
}

static void remember(int fd, const char *name, int64_t offset, int64_t bytes) {
    if (strcmp(fail_kind, "drop") != 0 || strcmp(name, fail_name) != 0) return;
    struct stat status;
    if (fstat(fd, &status) != 0) return;
    struct undo *undo = calloc(1, sizeof *undo + (size_t)bytes);
    undo->before = undos, undo->offset = offset, undo->size_before = status.st_size;
    char path[4096];
    if (path_behind(fd, path, sizeof path)) { /* the descriptor may be for writing only */
        int reading = open(path, O_RDONLY | O_CLOEXEC);
        undo->bytes = syscall(SYS_pread64, reading, undo->was, (size_t)bytes, (off_t)offset);
        if (undo->bytes < 0) undo->bytes = 0;
        syscall(SYS_close, reading);
    }
    undos = undo;
}

static void forget(const char *name, int fd, int take_back) {
    if (strcmp(name, fail_name) != 0) return;
    while (undos != NULL) {
        struct undo *undo = undos;
        if (take_back) {
            syscall(SYS_pwrite64, fd, undo->was, (size_t)undo->bytes, (off_t)undo->offset);
            syscall(SYS_ftruncate, fd, (off_t)undo->size_before);
        }
        undos = undo->before;
        free(undo);
    }
}

static ssize_t written(int fd, const void *body, size_t bytes, off_t offset, int at_offset) {
    char path[4096];
    const char *name = path_behind(fd, path, sizeof path) ? name_of(path) : NULL;
    if (name == NULL)
        return at_offset ? syscall(SYS_pwrite64, fd, body, bytes, offset) : syscall(SYS_write, fd, body, bytes);
    pthread_mutex_lock(&turn);
    if (!at_offset) offset = lseek(fd, 0, SEEK_CUR);
    size_t wanted = bytes;
    int failing = fails("write", name), error = 0;
    if (failing) {
        int begins = seen == fail_from;
        if (strcmp(fail_kind, "short") == 0 || (strcmp(fail_kind, "torn") == 0 && begins)) wanted = bytes / 2;
        else error = strcmp(fail_kind, "eio") == 0 ? EIO : ENOSPC;
    }
    ssize_t done = -1;
    if (error == 0) {
        remember(fd, name, offset, (int64_t)wanted);
        done = at_offset ? syscall(SYS_pwrite64, fd, body, wanted, offset) : syscall(SYS_write, fd, body, wanted);
        error = errno;
        if (done > 0) note('w', name, offset, body, done);
    }
    if (failing) note('x', name, offset, NULL, 0);
    pthread_mutex_unlock(&turn);
    errno = error;
    return done;
}

ssize_t write(int fd, const void *body, size_t bytes) { return written(fd, body, bytes, 0, 0); }
ssize_t pwrite(int fd, const void *body, size_t bytes, off_t offset) { return written(fd, body, bytes, offset, 1); }
ssize_t pwrite64(int fd, const void *body, size_t bytes, off64_t offset) { return written(fd, body, bytes, offset, 1); }

static ssize_t got(int fd, void *body, size_t bytes, off_t offset, int at_offset) {
    char path[4096];
    const char *name = fail_count != 0 && path_behind(fd, path, sizeof path) ? name_of(path) : NULL;
    int error = 0;
    if (name != NULL) {
        pthread_mutex_lock(&turn);
        if (fails("read", name)) {
            if (strcmp(fail_kind, "short") == 0) bytes -= bytes / 2;
            else error = strcmp(fail_kind, "eintr") == 0 ? EINTR : EIO;
            note('x', name, offset, NULL, 0);
        }
        pthread_mutex_unlock(&turn);
    }
    if (error != 0) {
        errno = error;
        return -1;
    }
    return at_offset ? syscall(SYS_pread64, fd, body, bytes, offset) : syscall(SYS_read, fd, body, bytes);
}

ssize_t read(int fd, void *body, size_t bytes) { return got(fd, body, bytes, 0, 0); }
ssize_t pread(int fd, void *body, size_t bytes, off_t offset) { return got(fd, body, bytes, offset, 1); }
ssize_t pread64(int fd, void *body, size_t bytes, off64_t offset) { return got(fd, body, bytes, offset, 1); }

static int truncated(int fd, off_t size) {
    char path[4096];
    const char *name = path_behind(fd, path, sizeof path) ? name_of(path) : NULL;
    if (name == NULL) return (int)syscall(SYS_ftruncate, fd, size);
    pthread_mutex_lock(&turn);
    struct stat status;
    if (fstat(fd, &status) == 0 && status.st_size > size) remember(fd, name, size, status.st_size - size);
    int result = (int)syscall(SYS_ftruncate, fd, size), error = errno;
    if (result == 0) note('t', name, size, NULL, 0);
    pthread_mutex_unlock(&turn);
    errno = error;
    return result;
}

int ftruncate(int fd, off_t size) { return truncated(fd, size); }
int ftruncate64(int fd, off64_t size) { return truncated(fd, size); }

static int synced(int fd, long call) {
    char path[4096];
    const char *name = NULL;
    int is_folder = 0;
    if (path_behind(fd, path, sizeof path)) {
        name = name_of(path);
        is_folder = store_bytes != 0 && strcmp(path, folder) == 0;
    }
    if (name == NULL && !is_folder) return (int)syscall(call, fd);
    pthread_mutex_lock(&turn);
    int result = 0, error = 0;
    if (is_folder) {
        result = (int)syscall(call, fd), error = errno;
        note('d', "", 0, NULL, 0);
    } else if (fails("sync", name)) {
        result = -1, error = EIO;
        note('f', name, 0, NULL, 0);
        forget(name, fd, strcmp(fail_kind, "drop") == 0);
    } else {
        result = (int)syscall(call, fd), error = errno;
        note(result == 0 ? 's' : 'f', name, 0, NULL, 0);
        forget(name, fd, 0);
    }
    pthread_mutex_unlock(&turn);
    errno = error;
    return result;
}

int fsync(int fd) { return synced(fd, SYS_fsync); }
int fdatasync(int fd) { return synced(fd, SYS_fdatasync); }

int unlink(const char *path) {
    const char *name = name_of(path);
    if (name == NULL) return (int)syscall(SYS_unlinkat, AT_FDCWD, path, 0);
    pthread_mutex_lock(&turn);
    int result = (int)syscall(SYS_unlinkat, AT_FDCWD, path, 0), error = errno;
    if (result == 0) note('u', name, 0, NULL, 0);
    pthread_mutex_unlock(&turn);
    errno = error;
    return result;
}

int rename(const char *from, const char *to) {
    const char *name = name_of(from), *becomes = name_of(to);
    pthread_mutex_lock(&turn);
    int result = (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0), error = errno;
    if (result == 0 && name != NULL && becomes != NULL) note('r', name, 0, becomes, (int64_t)strlen(becomes));
    pthread_mutex_unlock(&turn);
    errno = error;
    return result;
}
