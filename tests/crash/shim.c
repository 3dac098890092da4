/* A fault shim for one directory: counts, logs, fails, delays and kills file operations, and keeps what a power cut
 * needs.
 *
 * Loaded with LD_PRELOAD. It stands between a process and libc's file calls and acts only on files below SHIM_ROOT (a
 * real path, spelled without symbolic links); everything else goes straight to the kernel. It knows no policy: how a
 * power cut rewrites the files is decided afterwards, in shim.py, from the journal that is written here. Every call it
 * makes itself is a raw system call, or a libc call that is not interposed, so it never meets itself.
 *
 * Files in SHIM_STATE (which must not lie below SHIM_ROOT)
 *   control   one page shared by shim.py and every process under the shim: struct control below
 *   journal   struct record, names, bytes; appended by one writev each, so it outlives SIGKILL
 *   ops       a line for each operation, before it is done: "number kind size name [errno]"; number 0: changes nothing
 *   kept/N    hard link to a file that a rename replaced (or an unlink removed, if keep_unlinked)
 *
 * What is modelled
 *   - Content is an undo log: before a byte changes, its old value and the old file size stand in the journal. A write
 *     is durable if it returned before the beginning of an fsync or fdatasync that succeeded; one that is made while an
 *     fsync runs is not covered by it. What a failed fsync was to write stays lost whatever later ones say, as in
 *     Linux, where the pages are then clean.
 *   - Names: create, rename, link and unlink stand in the journal after they are done, one at a time; fsync of the
 *     directory or of the file makes them durable.
 *   - The journal follows inodes, so duplicated, inherited and re-opened descriptors, and renamed files, need no table.
 * What is not
 *   - stdio (fwrite and its kin), io_uring, splice, mkdir, rmdir, remove(3), symlinks, O_TMPFILE: not seen.
 *   - sync, syncfs, sync_file_range, msync and O_SYNC make nothing durable here, close changes nothing: not interposed.
 *   - A writable shared mapping is only noted (MAPPED). copy_file_range and sendfile into the root fail with EINVAL,
 *     fallocate with COLLAPSE or INSERT with EOPNOTSUPP: callers then fall back to calls that are seen.
 *   - Two processes that change the same file at the same moment (the locks are each process's own).
 *   - Short writes: a write is done whole, or fails whole with nothing written.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <inttypes.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { OPEN, CREATE, WRITE, TRUNCATE, FSYNC, RENAME, LINK, UNLINK, KINDS };
static const char *const kind_names[KINDS] = {"open",  "create", "write", "truncate",
                                              "fsync", "rename", "link",  "unlink"};

/* The control page. shim.py (CONTROL) holds the same table; both name every offset. */
struct control {
    uint32_t magic;               /*   0  "SHM1" */
    uint32_t log;                 /*   4  1: write `ops` */
    uint32_t armed;               /*   8  1: the failure below is armed; written last */
    uint32_t op_mask;             /*  12  bit 1 << kind */
    int32_t error;                /*  16  errno to report */
    uint32_t sticky;              /*  20  1: the nth and all later ones fail; 0: only the nth */
    uint64_t nth;                 /*  24  which matching operation fails, from 1 */
    _Atomic uint64_t seen;        /*  32  matching operations since it was armed */
    _Atomic uint64_t fired;       /*  40  failures reported */
    uint64_t delay_us;            /*  48  before each fsync and fdatasync */
    uint64_t kill_at;             /*  56  number of the operation that kills; 0: never */
    uint32_t kill_after;          /*  64  0: killed before it is done, 1: after */
    uint32_t keep_unlinked;       /*  68  1: unlinked files are kept, so that the unlink can be undone */
    _Atomic uint64_t numbered;    /*  72  operations that change something, so far */
    _Atomic uint64_t token;       /*  80  last number given to an fsync or a kept file */
    _Atomic uint64_t counts[KINDS]; /*  88  operations by kind */
    char match[104];              /* 152  glob on the last part of the name; empty: all */
};
_Static_assert(sizeof(struct control) == 256, "shim.py knows this size");

enum event { DIRTY = 1, RESIZED, SYNC_BEGIN, SYNC_END, CREATED, RENAMED, LINKED, UNLINKED, MAPPED };

/* One record of the journal, followed by `names_size` bytes of NUL-terminated paths and `data_size` old bytes.
 *
 *   event       offset            length      names       data
 *   DIRTY       first byte        bytes       -           old bytes from offset, up to old_size
 *   RESIZED     new size          0           -           - (what is cut off: in DIRTY records before)
 *   SYNC_BEGIN  token             0           path        -
 *   SYNC_END    token             errno or 0  -           -
 *   CREATED     0                 0           path        -
 *   RENAMED     kept number or 0  0           old, new    -
 *   LINKED      0                 0           path        -
 *   UNLINKED    kept number or 0  0           path        -     (links: before)
 *   MAPPED      0                 0           path        -
 */
struct record {
    uint32_t magic;      /*  0  "REC1" */
    uint16_t event;      /*  4 */
    uint16_t names_size; /*  6 */
    uint32_t data_size;  /*  8 */
    uint32_t links;      /* 12  of the inode */
    uint64_t device;     /* 16 */
    uint64_t inode;      /* 24 */
    int64_t offset;      /* 32 */
    int64_t length;      /* 40 */
    int64_t old_size;    /* 48  of the inode */
};
_Static_assert(sizeof(struct record) == 56, "shim.py knows this size");

struct target { /* an open file or directory below the root */
    int fd;
    struct stat at;
    char path[PATH_MAX];
};

enum { CONTROL_MAGIC = 0x314d4853, RECORD_MAGIC = 0x31434552 };
enum { STRIPES = 64, CHUNK = 64 * 1024, HIGH_FD = 200, HERE = -1 };

/* Constant after start. */
static int active;
static char root[PATH_MAX];
static size_t root_size;
static dev_t root_device;
static int state_fd, journal_fd, ops_fd;
static struct control *ctl;

/* Lock order: names, then at most one content lock. No lock is held during an fsync or a delay. */
static pthread_mutex_t names_lock;             /* a change of names and its record are one step */
static pthread_mutex_t content_locks[STRIPES]; /* a change of an inode's bytes and its records are one step */

static pthread_mutex_t *content_lock(const struct stat *at) { return &content_locks[at->st_ino % STRIPES]; }

static _Noreturn void die(const char *why)
{
    char line[256];
    int size = snprintf(line, sizeof line, "shim: %s: errno %d\n", why, errno);
    syscall(SYS_write, 2, line, size);
    abort(); /* a power cut without a whole journal would prove nothing */
}

static int close_with(int fd, int result) /* `result`, with the errno that belongs to it */
{
    int error = errno;
    if (fd >= 0)
        syscall(SYS_close, fd);
    errno = error;
    return result;
}

/* ---------------------------------------------------------------------------------------- start of a process */

static void reset_locks(void) /* in a forked child, where another thread may have held one */
{
    pthread_mutex_init(&names_lock, NULL);
    for (int i = 0; i < STRIPES; i++)
        pthread_mutex_init(&content_locks[i], NULL);
}

static int open_high(const char *name, int flags) /* high, where programs that close "all" small ones leave it alone */
{
    int fd = syscall(SYS_openat, state_fd, name, flags | O_CLOEXEC, 0644);
    int high = fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, HIGH_FD);
    if (high < 0)
        die(name);
    return close_with(fd, high);
}

__attribute__((constructor)) static void start(void)
{
    const char *where = getenv("SHIM_ROOT"), *state = getenv("SHIM_STATE");
    struct stat at;
    if (!where || !state)
        return;
    if (!realpath(where, root) || stat(root, &at) < 0)
        die("SHIM_ROOT");
    root_size = strlen(root);
    root_device = at.st_dev;
    reset_locks();
    pthread_atfork(NULL, NULL, reset_locks);
    state_fd = AT_FDCWD;
    state_fd = open_high(state, O_RDONLY | O_DIRECTORY);
    journal_fd = open_high("journal", O_WRONLY | O_APPEND | O_CREAT);
    ops_fd = open_high("ops", O_WRONLY | O_APPEND | O_CREAT);
    int fd = open_high("control", O_RDWR);
    ctl = (void *)syscall(SYS_mmap, NULL, sizeof *ctl, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (ctl == MAP_FAILED || ctl->magic != CONTROL_MAGIC)
        die("control");
    syscall(SYS_close, fd);
    active = 1;
}

/* ------------------------------------------------------------------------------------------- which file is it */

static int below(const char *path)
{
    return strncmp(path, root, root_size) == 0 && (path[root_size] == '/' || path[root_size] == 0);
}

static int link_of(int fd, char *path) /* the path of an open file, as the kernel has it now */
{
    char proc[40];
    snprintf(proc, sizeof proc, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(proc, path, PATH_MAX - 1);
    path[size < 0 ? 0 : size] = 0;
    return size > 0;
}

/* 1 if `fd` is a file or directory below the root that still has a name. Leaves errno alone. */
static int look(int fd, struct target *t)
{
    int saved = errno, found = 0;
    if (active && fd >= 0 && fstat(fd, &t->at) == 0 && (S_ISREG(t->at.st_mode) || S_ISDIR(t->at.st_mode)))
        found = t->at.st_dev == root_device && t->at.st_nlink > 0 && link_of(fd, t->path) && below(t->path);
    t->fd = fd;
    errno = saved;
    return found;
}

/* 1 if `path`, as the caller spells it, lies below the root; `full` is it from "/". Leaves errno alone. */
static int resolve(int dir, const char *path, char *full)
{
    int saved = errno, whole = 1;
    if (!active || !path)
        return 0;
    full[0] = 0;
    if (path[0] != '/')
        whole = dir == AT_FDCWD ? getcwd(full, PATH_MAX) != NULL : link_of(dir, full);
    size_t used = strlen(full);
    int more = snprintf(full + used, PATH_MAX - used, "%s%s", path[0] == '/' ? "" : "/", path);
    errno = saved;
    return whole && used + more < PATH_MAX && below(full);
}

static const char *shown(const char *path)
{
    path += root_size;
    while (*path == '/')
        path++;
    return *path ? path : ".";
}

/* ---------------------------------------------------------------------------------------------- the journal */

static void append(int fd, const void *head, size_t head_size, const void *tail, size_t tail_size)
{
    struct iovec parts[2] = {{(void *)head, head_size}, {(void *)tail, tail_size}};
    ssize_t done = syscall(SYS_writev, fd, parts, 2);
    if (done != (ssize_t)(head_size + tail_size))
        die("cannot append to the journal");
}

static struct record header(enum event event, const struct stat *at, int64_t offset, int64_t length)
{
    return (struct record){.magic = RECORD_MAGIC, .event = event, .device = at->st_dev, .inode = at->st_ino,
                           .links = at->st_nlink, .offset = offset, .length = length, .old_size = at->st_size};
}

static void record(enum event event, const struct stat *at, int64_t offset, int64_t length, const void *data,
                   size_t size)
{
    struct record r = header(event, at, offset, length);
    r.data_size = size;
    append(journal_fd, &r, sizeof r, data, size);
}

static void record_names(enum event event, const struct stat *at, int64_t number, const char *one, const char *two)
{
    char names[2 * PATH_MAX];
    struct record r = header(event, at, number, 0);
    r.names_size = snprintf(names, sizeof names, "%s%c%s", one, 0, two ? two : "") + 1;
    append(journal_fd, &r, sizeof r, names, r.names_size);
}

/* Puts into the journal that [offset, offset + length) may change, with the old bytes of the part that exists.
 * Under the content lock, with t->at fresh. Reads through a descriptor of its own: the caller's may be write-only. */
static void save(const struct target *t, int64_t offset, int64_t length)
{
    char proc[40], old[CHUNK];
    int64_t until = offset + length;
    int reader = -1;
    while (offset < until && offset < t->at.st_size) {
        snprintf(proc, sizeof proc, "/proc/self/fd/%d", t->fd);
        if (reader < 0 && (reader = syscall(SYS_openat, AT_FDCWD, proc, O_RDONLY | O_CLOEXEC)) < 0)
            die("cannot open a file to read its old bytes");
        int64_t some = until < t->at.st_size ? until - offset : t->at.st_size - offset;
        some = syscall(SYS_pread64, reader, old, some < CHUNK ? some : CHUNK, offset);
        if (some <= 0)
            die("cannot read old bytes");
        record(DIRTY, &t->at, offset, some, old, some);
        offset += some;
    }
    close_with(reader, 0);
    if (offset < until)
        record(DIRTY, &t->at, offset, until - offset, NULL, 0);
}

/* --------------------------------------------------------------------------- every operation: before and after */

struct op {
    uint64_t number; /* 0: changes nothing */
    int saved;       /* errno of the caller, put back when the operation succeeds */
};

static void kill_self(void)
{
    syscall(SYS_kill, (int)syscall(SYS_getpid), SIGKILL);
    for (;;)
        pause();
}

static int injected(enum kind kind, const char *path) /* the errno this operation must fail with, or 0 */
{
    if (!ctl->armed || !(ctl->op_mask & 1u << kind))
        return 0;
    if (ctl->match[0] && fnmatch(ctl->match, strrchr(path, '/') + 1, 0) != 0)
        return 0;
    uint64_t mine = ++ctl->seen;
    if (mine != ctl->nth && !(ctl->sticky && mine > ctl->nth))
        return 0;
    ctl->fired++;
    return ctl->error;
}

/* Counts, logs, kills. -1 with errno set if the operation must fail, else 0. */
static int before(struct op *op, enum kind kind, const char *path, int64_t size)
{
    char line[PATH_MAX + 80];
    op->saved = errno;
    ctl->counts[kind]++;
    op->number = kind == OPEN ? 0 : ++ctl->numbered;
    int error = injected(kind, path);
    if (ctl->log) {
        int used = snprintf(line, sizeof line, "%" PRIu64 " %s %" PRId64 " ", op->number, kind_names[kind], size);
        used += snprintf(line + used, sizeof line - used, "%s", shown(path));
        used += snprintf(line + used, sizeof line - used, error ? " %d\n" : "\n", error);
        append(ops_fd, line, used, NULL, 0);
    }
    if (op->number && op->number == ctl->kill_at && !ctl->kill_after)
        kill_self();
    errno = error;
    return error ? -1 : 0;
}

static long after(const struct op *op, long result) /* errno is the operation's own if `result` is negative */
{
    if (op->number && op->number == ctl->kill_at && ctl->kill_after)
        kill_self();
    if (result >= 0)
        errno = op->saved;
    return result;
}

static long refuse(int error)
{
    errno = error;
    return -1;
}

/* ------------------------------------------------------------------------------------------------ content */

static ssize_t put(struct target *t, const struct iovec *parts, int count, off_t at, int flags)
{
    struct op op;
    int64_t total = 0;
    for (int i = 0; i < count; i++)
        total += parts[i].iov_len;
    if (before(&op, WRITE, t->path, total) < 0)
        return -1;
    pthread_mutex_lock(content_lock(&t->at));
    fstat(t->fd, &t->at);
    if (fcntl(t->fd, F_GETFL) & O_APPEND)
        save(t, t->at.st_size, total);
    else
        save(t, at == HERE ? lseek(t->fd, 0, SEEK_CUR) : at, total);
    ssize_t done = syscall(SYS_pwritev2, t->fd, parts, count, at, 0, flags);
    pthread_mutex_unlock(content_lock(&t->at));
    return after(&op, done);
}

ssize_t write(int fd, const void *data, size_t size)
{
    struct target t;
    if (!look(fd, &t))
        return syscall(SYS_write, fd, data, size);
    return put(&t, &(struct iovec){(void *)data, size}, 1, HERE, 0);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t at)
{
    struct target t;
    if (at < 0 || !look(fd, &t))
        return syscall(SYS_pwrite64, fd, data, size, at);
    return put(&t, &(struct iovec){(void *)data, size}, 1, at, 0);
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    struct target t;
    return look(fd, &t) ? put(&t, parts, count, HERE, 0) : syscall(SYS_writev, fd, parts, count);
}

ssize_t pwritev2(int fd, const struct iovec *parts, int count, off_t at, int flags)
{
    struct target t;
    return look(fd, &t) ? put(&t, parts, count, at, flags) : syscall(SYS_pwritev2, fd, parts, count, at, 0, flags);
}

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at)
{
    return at < 0 ? refuse(EINVAL) : pwritev2(fd, parts, count, at, 0);
}

/* Runs a call that sets the size to `size` and clears [at, at + cleared). */
static int resize(struct target *t, int64_t size, int64_t at, int64_t cleared, long call, long a, long b, long c)
{
    struct op op;
    if (before(&op, TRUNCATE, t->path, size) < 0)
        return -1;
    pthread_mutex_lock(content_lock(&t->at));
    fstat(t->fd, &t->at);
    save(t, at, cleared);
    save(t, size, t->at.st_size - size);
    if (size != t->at.st_size)
        record(RESIZED, &t->at, size, 0, NULL, 0);
    int done = syscall(call, t->fd, a, b, c);
    pthread_mutex_unlock(content_lock(&t->at));
    return after(&op, done);
}

int ftruncate(int fd, off_t size)
{
    struct target t;
    if (size < 0 || !look(fd, &t))
        return syscall(SYS_ftruncate, fd, size);
    return resize(&t, size, 0, 0, SYS_ftruncate, size, 0, 0);
}

int truncate(const char *path, off_t size)
{
    char full[PATH_MAX];
    if (!resolve(AT_FDCWD, path, full))
        return syscall(SYS_truncate, path, size);
    int fd = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CLOEXEC);
    int done = fd < 0 ? -1 : ftruncate(fd, size);
    return close_with(fd, done);
}

int fallocate(int fd, int mode, off_t at, off_t length)
{
    struct target t;
    if (at < 0 || length <= 0 || !look(fd, &t))
        return syscall(SYS_fallocate, fd, mode, at, length);
    if (mode & (FALLOC_FL_COLLAPSE_RANGE | FALLOC_FL_INSERT_RANGE))
        return refuse(EOPNOTSUPP);
    int64_t size = mode & FALLOC_FL_KEEP_SIZE || at + length < t.at.st_size ? t.at.st_size : at + length;
    int clears = mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE);
    return resize(&t, size, at, clears ? length : 0, SYS_fallocate, mode, at, length);
}

int posix_fallocate(int fd, off_t at, off_t length)
{
    int saved = errno, error = fallocate(fd, 0, at, length) < 0 ? errno : 0;
    errno = saved;
    return error;
}

static int settle(int fd, long call) /* fsync, fdatasync */
{
    struct target t;
    struct op op;
    if (!look(fd, &t))
        return syscall(call, fd);
    int error = before(&op, FSYNC, t.path, t.at.st_size) < 0 ? errno : 0;
    int64_t token = ++ctl->token, delay_us = ctl->delay_us;
    pthread_mutex_lock(&names_lock);
    pthread_mutex_lock(content_lock(&t.at));
    record_names(SYNC_BEGIN, &t.at, token, t.path, NULL);
    pthread_mutex_unlock(content_lock(&t.at));
    pthread_mutex_unlock(&names_lock);
    if (delay_us)
        nanosleep(&(struct timespec){delay_us / 1000000, delay_us % 1000000 * 1000}, NULL);
    if (!error && syscall(call, fd) < 0)
        error = errno;
    record(SYNC_END, &t.at, token, error, NULL, 0);
    return after(&op, error ? refuse(error) : 0);
}

int fsync(int fd) { return settle(fd, SYS_fsync); }
int fdatasync(int fd) { return settle(fd, SYS_fdatasync); }

void *mmap(void *where, size_t size, int protection, int flags, int fd, off_t at)
{
    struct target t;
    if (fd >= 0 && flags & MAP_SHARED && protection & PROT_WRITE && look(fd, &t))
        record_names(MAPPED, &t.at, 0, t.path, NULL);
    return (void *)syscall(SYS_mmap, where, size, protection, flags, fd, at);
}

ssize_t copy_file_range(int in, off64_t *in_at, int out, off64_t *out_at, size_t size, unsigned flags)
{
    struct target t;
    return look(out, &t) ? refuse(EINVAL) : syscall(SYS_copy_file_range, in, in_at, out, out_at, size, flags);
}

ssize_t sendfile(int out, int in, off_t *at, size_t size)
{
    struct target t;
    return look(out, &t) ? refuse(EINVAL) : syscall(SYS_sendfile, out, in, at, size);
}

/* -------------------------------------------------------------------------------------------------- names */

/* Opens a file that was not there a moment ago. -1 with EEXIST: somebody else made it meanwhile. */
static int create(int dir, const char *path, const char *full, int flags, mode_t mode)
{
    struct stat at;
    pthread_mutex_lock(&names_lock);
    int fd = syscall(SYS_openat, dir, path, flags | O_EXCL, mode);
    if (fd >= 0 && fstat(fd, &at) == 0)
        record_names(CREATED, &at, 0, full, NULL);
    pthread_mutex_unlock(&names_lock);
    return fd;
}

static int open_at(int dir, const char *path, int flags, mode_t mode)
{
    char full[PATH_MAX];
    struct op op;
    if (!resolve(dir, path, full))
        return syscall(SYS_openat, dir, path, flags, mode);
    int saved = errno, fresh = flags & O_CREAT && faccessat(dir, path, F_OK, 0) != 0;
    errno = saved;
    if (before(&op, fresh ? CREATE : OPEN, full, 0) < 0)
        return -1;
    int fd = fresh ? create(dir, path, full, flags, mode) : -1;
    if (!fresh || (fd < 0 && errno == EEXIST && !(flags & O_EXCL))) {
        int cut = flags & O_TRUNC && (flags & O_ACCMODE) != O_RDONLY;
        fd = syscall(SYS_openat, dir, path, cut ? flags & ~O_TRUNC : flags, mode);
        if (fd >= 0 && cut && ftruncate(fd, 0) < 0) /* an operation of its own: counted, may fail, may kill */
            return close_with(fd, -1);
    }
    return after(&op, fd);
}

#define WITH_MODE(dir)                                                                                                 \
    va_list rest;                                                                                                      \
    va_start(rest, flags);                                                                                             \
    mode_t mode = flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE ? va_arg(rest, mode_t) : 0;                      \
    va_end(rest);                                                                                                      \
    return open_at(dir, path, flags, mode)

int open(const char *path, int flags, ...) { WITH_MODE(AT_FDCWD); }
int openat(int dir, const char *path, int flags, ...) { WITH_MODE(dir); }
int creat(const char *path, mode_t mode) { return open_at(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int __open_2(const char *path, int flags) { return open_at(AT_FDCWD, path, flags, 0); }
int __openat_2(int dir, const char *path, int flags) { return open_at(dir, path, flags, 0); }

/* Keeps the file at `path` under a number, so that losing its name can be undone. 0: nothing to keep, or no way. */
static uint64_t keep(int dir, const char *path)
{
    char name[40];
    uint64_t number = ++ctl->token;
    snprintf(name, sizeof name, "kept/%" PRIu64, number);
    return syscall(SYS_linkat, dir, path, state_fd, name, 0) == 0 ? number : 0;
}

int renameat2(int old_dir, const char *old_path, int new_dir, const char *new_path, unsigned flags)
{
    char from[PATH_MAX], to[PATH_MAX];
    struct stat at;
    struct op op;
    int from_here = resolve(old_dir, old_path, from), to_here = resolve(new_dir, new_path, to);
    if (!from_here && !to_here)
        return syscall(SYS_renameat2, old_dir, old_path, new_dir, new_path, flags);
    if (flags & ~RENAME_NOREPLACE)
        return refuse(EINVAL);
    if (before(&op, RENAME, to_here ? to : from, 0) < 0)
        return -1;
    pthread_mutex_lock(&names_lock);
    int known = fstatat(old_dir, old_path, &at, AT_SYMLINK_NOFOLLOW) == 0 && from_here && to_here;
    uint64_t kept = known ? keep(new_dir, new_path) : 0;
    int done = syscall(SYS_renameat2, old_dir, old_path, new_dir, new_path, flags);
    if (done == 0 && known)
        record_names(RENAMED, &at, kept, from, to);
    pthread_mutex_unlock(&names_lock);
    return after(&op, done);
}

int renameat(int from_dir, const char *from, int to_dir, const char *to)
{
    return renameat2(from_dir, from, to_dir, to, 0);
}

int rename(const char *from, const char *to) { return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0); }

int linkat(int old_dir, const char *old_path, int new_dir, const char *new_path, int flags)
{
    char to[PATH_MAX];
    struct stat at;
    struct op op;
    if (!resolve(new_dir, new_path, to))
        return syscall(SYS_linkat, old_dir, old_path, new_dir, new_path, flags);
    if (before(&op, LINK, to, 0) < 0)
        return -1;
    pthread_mutex_lock(&names_lock);
    int done = syscall(SYS_linkat, old_dir, old_path, new_dir, new_path, flags);
    if (done == 0 && fstatat(new_dir, new_path, &at, AT_SYMLINK_NOFOLLOW) == 0)
        record_names(LINKED, &at, 0, to, NULL);
    pthread_mutex_unlock(&names_lock);
    return after(&op, done);
}

int link(const char *from, const char *to) { return linkat(AT_FDCWD, from, AT_FDCWD, to, 0); }

int unlinkat(int dir, const char *path, int flags)
{
    char full[PATH_MAX];
    struct stat at;
    struct op op;
    if (flags & AT_REMOVEDIR || !resolve(dir, path, full))
        return syscall(SYS_unlinkat, dir, path, flags);
    if (before(&op, UNLINK, full, 0) < 0)
        return -1;
    pthread_mutex_lock(&names_lock);
    int known = fstatat(dir, path, &at, AT_SYMLINK_NOFOLLOW) == 0;
    uint64_t kept = known && ctl->keep_unlinked ? keep(dir, path) : 0;
    int done = syscall(SYS_unlinkat, dir, path, flags);
    if (done == 0 && known)
        record_names(UNLINKED, &at, kept, full, NULL);
    pthread_mutex_unlock(&names_lock);
    return after(&op, done);
}

int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }

/* ------------------------------------------------------------- the 64-bit names: the same functions on 64-bit Linux */

_Static_assert(sizeof(off_t) == sizeof(off64_t), "64-bit Linux only");
#define SAME(name) __attribute__((alias(#name)))
int open64(const char *path, int flags, ...) SAME(open);
int openat64(int dir, const char *path, int flags, ...) SAME(openat);
int creat64(const char *path, mode_t mode) SAME(creat);
int __open64_2(const char *path, int flags) SAME(__open_2);
int __openat64_2(int dir, const char *path, int flags) SAME(__openat_2);
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) SAME(pwrite);
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t at) SAME(pwritev);
ssize_t pwritev64v2(int fd, const struct iovec *parts, int count, off64_t at, int flags) SAME(pwritev2);
int ftruncate64(int fd, off64_t size) SAME(ftruncate);
int truncate64(const char *path, off64_t size) SAME(truncate);
int fallocate64(int fd, int mode, off64_t at, off64_t length) SAME(fallocate);
int posix_fallocate64(int fd, off64_t at, off64_t length) SAME(posix_fallocate);
void *mmap64(void *where, size_t size, int protection, int flags, int fd, off64_t at) SAME(mmap);
ssize_t sendfile64(int out, int in, off64_t *at, size_t size) SAME(sendfile);
