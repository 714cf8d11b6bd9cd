/*
 * The child and the talk with it: see bench_peer.py for the words.  One socket
 * is the child's standard input and takes the answers too; what Python or a
 * module of its prints goes nowhere.
 */
#include "bench_peers.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench_run.h"

/* bench_peer.py; CMake makes it. */
extern const char bench_peer_script[];

extern char **environ;

enum { OPEN, RUN, CHECK, ASK };
enum { ANSWER_BYTES = 160 };

/* Python and a library from a slow disk, or a source of 512 MiB, take a few seconds. */
static const int64_t patience_ns = 30000000000;

static const char *const names[] = {"numpy", "index_copy_"};
static const char *const modules[] = {"numpy", "torch"};

static const char nonsense[] = "an answer that makes no sense";
static const char ended[] = "it has ended";

const char *bench_peer_name(int peer)
{
    return names[peer];
}

bool bench_peers_has(const bench_peers *peers, int peer)
{
    return peers->pid > 0 && peers->has[peer];
}

/* ---- notes --------------------------------------------------------------- */

static void join(char *out, size_t cap_bytes, const char *const *texts, const bool *wanted)
{
    size_t length = 0;

    out[0] = '\0';
    for (int i = 0; i < BENCH_N_PEERS; i++) {
        if (wanted[i] && length < cap_bytes) {
            length += (size_t)snprintf(out + length, cap_bytes - length, "%s%s",
                                       length > 0 ? " and " : "", texts[i]);
        }
    }
}

static void note(const bench_peers *peers, const bool *lost, const char *why)
{
    char rows[64];

    join(rows, sizeof rows, names, lost);
    if (!peers->options->quiet && rows[0] != '\0') {
        bench_progress(peers->options, NULL);
        (void)cli_fail(CLI_OK, "bench: no rows of %s: %.200s: %s", rows, peers->python, why);
    }
}

void bench_peers_close(bench_peers *peers)
{
    if (peers->pid > 0) {
        close(peers->socket);
        kill(peers->pid, SIGKILL);
        while (waitpid(peers->pid, NULL, 0) < 0 && errno == EINTR) {
        }
        peers->pid = 0;
    }
}

/* No more peers: one note.  Returns false. */
static bool lose(bench_peers *peers, const char *why)
{
    bench_peers_close(peers);
    note(peers, peers->has, why);
    return false;
}

/* ---- the child ----------------------------------------------------------- */

/* Its standard input is the socket.  An error number. */
static int spawn(bench_peers *peers, int child_socket)
{
    char                       option[] = "-c";
    char                      *argv[5] = {NULL};
    posix_spawn_file_actions_t files;
    int                        error = posix_spawn_file_actions_init(&files);

    if (error != 0) {
        return error;
    }
    argv[0] = strdup(peers->python);
    argv[1] = option;
    argv[2] = strdup(bench_peer_script);
    argv[3] = strdup(pkv_dtype_name(peers->options->dtype));
    error = argv[0] == NULL || argv[2] == NULL || argv[3] == NULL ? ENOMEM : 0;
    if (error == 0) {
        error = posix_spawn_file_actions_adddup2(&files, child_socket, STDIN_FILENO);
    }
    if (error == 0) {
        error = posix_spawn_file_actions_addopen(&files, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
    }
    if (error == 0) {
        error = posix_spawn_file_actions_adddup2(&files, STDOUT_FILENO, STDERR_FILENO);
    }
    if (error == 0) {
        error = posix_spawnp(&peers->pid, argv[0], &files, NULL, argv, environ);
    }
    posix_spawn_file_actions_destroy(&files);
    free(argv[0]);
    free(argv[2]);
    free(argv[3]);
    return error;
}

void bench_peers_start(bench_peers *peers, const bench_options *options)
{
    const char *named = getenv("PAGEDKV_PYTHON");
    int         sockets[2];

    /* Until the child says what it has, all is lost with it. */
    *peers = (bench_peers){.options = options,
                           .python = named != NULL ? named : "python3",
                           .has = {true, true}};
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) != 0) {
        note(peers, peers->has, strerror(errno));
        return;
    }
    peers->socket = sockets[0];
    int error = spawn(peers, sockets[1]);
    close(sockets[1]);
    if (error != 0) {
        close(sockets[0]);
        peers->pid = 0;
        note(peers, peers->has, strerror(error));
    }
}

/* ---- requests and answers ------------------------------------------------ */

/* Waits until the socket takes or has bytes; false after the note. */
static bool wait_for(bench_peers *peers, short event, int64_t end_ns)
{
    struct pollfd asked = {.fd = peers->socket, .events = event};
    int           n;

    do {
        int64_t left_ms = (end_ns - cli_now_ns()) / 1000000;
        n = poll(&asked, 1, left_ms > 0 ? (int)left_ms : 0);
    } while (n < 0 && errno == EINTR);
    return n > 0 || lose(peers, "no answer for 30 s");
}

static bool send_numbers(bench_peers *peers, const int64_t *numbers, int64_t n, int64_t end_ns)
{
    const char *at = (const char *)numbers;
    const char *end = at + (size_t)n * sizeof numbers[0];

    while (at < end) {
        if (!wait_for(peers, POLLOUT, end_ns)) {
            return false;
        }
        /* A child that is gone must be an error here, not the end of the program. */
        ssize_t sent = send(peers->socket, at, (size_t)(end - at), MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno != EAGAIN && errno != EINTR) {
            return lose(peers, ended);
        }
        at += sent > 0 ? sent : 0;
    }
    return true;
}

/* A line without its end; false after the note. */
static bool receive_line(bench_peers *peers, char line[ANSWER_BYTES], int64_t end_ns)
{
    size_t      length = 0;
    const char *end = NULL;

    while (end == NULL && length < ANSWER_BYTES) {
        if (!wait_for(peers, POLLIN, end_ns)) {
            return false;
        }
        ssize_t got = recv(peers->socket, line + length, ANSWER_BYTES - length, MSG_DONTWAIT);
        if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR)) {
            return lose(peers, ended);
        }
        length += got > 0 ? (size_t)got : 0;
        end = memchr(line, '\n', length);
    }
    if (end != line + length - 1) {
        return lose(peers, nonsense);
    }
    line[length - 1] = '\0';
    return true;
}

/* "ok NUMBER", the number in [min, max]; false after the note. */
static bool receive(bench_peers *peers, int64_t min, int64_t max, int64_t end_ns, int64_t *out)
{
    char line[ANSWER_BYTES];

    if (!receive_line(peers, line, end_ns)) {
        return false;
    }
    if (strncmp(line, "failed ", strlen("failed ")) == 0) {
        return lose(peers, line);
    }
    char     *end = line;
    long long number = -1;
    if (strncmp(line, "ok ", strlen("ok ")) == 0) {
        number = strtoll(line + strlen("ok "), &end, 10);
    }
    if (end == line || *end != '\0' || number < min || number > max) {
        return lose(peers, nonsense);
    }
    *out = number;
    return true;
}

static int64_t answer_end_ns(void)
{
    return cli_now_ns() + patience_ns;
}

/* Which peers it has. */
static bool greet(bench_peers *peers)
{
    int64_t present = 0;
    bool    absent[BENCH_N_PEERS];
    char    missing[64], why[128];

    if (!receive(peers, 0, (1 << BENCH_N_PEERS) - 1, answer_end_ns(), &present)) {
        return false;
    }
    for (int i = 0; i < BENCH_N_PEERS; i++) {
        peers->has[i] = (present >> i & 1) != 0;
        absent[i] = !peers->has[i];
    }
    peers->greeted = true;
    join(missing, sizeof missing, modules, absent);
    snprintf(why, sizeof why, "cannot import %s", missing);
    note(peers, absent, why);
    if (present == 0) {
        bench_peers_close(peers);
    }
    return present != 0;
}

void bench_peers_open(bench_peers *peers, const bench_memory *memory, bool huge_pages)
{
    int64_t request[] = {OPEN, 3, (int64_t)memory->cache.size_bytes,
                         (int64_t)memory->source.size_bytes, huge_pages};
    int64_t n = (int64_t)(sizeof request / sizeof request[0]);
    int64_t got_huge_pages = 0;

    if (peers->pid <= 0 || (!peers->greeted && !greet(peers))) {
        return;
    }
    int64_t end_ns = answer_end_ns();
    if (send_numbers(peers, request, n, end_ns) && receive(peers, 0, 1, end_ns, &got_huge_pages) &&
        (got_huge_pages != 0) != memory->huge_pages) {
        /* A ratio between two kinds of pages says nothing. */
        lose(peers, got_huge_pages != 0 ? "got huge pages, the program did not"
                                        : "got no huge pages, the program did");
    }
}

bool bench_peers_converts(bench_peers *peers, int peer, pkv_dtype from, pkv_dtype to)
{
    int64_t request[] = {ASK, 3, peer, from, to};
    int64_t end_ns = answer_end_ns();
    int64_t can = 0;

    return bench_peers_has(peers, peer) && send_numbers(peers, request, 5, end_ns) &&
           receive(peers, 0, 1, end_ns, &can) && can != 0;
}

double bench_peers_run(bench_peers *peers, const bench_peer_run *run)
{
    const bench_view *view = run->view;
    const pkv_cache  *cache = &view->cache;
    int64_t           n_tokens = run->steps[0].n_tokens;
    /* The fields of Task in bench_peer.py, then the slots. */
    int64_t task[] = {run->peer,       run->threads,         run->warm,
                      run->n_calls,    n_tokens,             view->n_planes,
                      cache->n_pages * cache->page_size,     2 * cache->n_heads / view->n_planes,
                      view->row_bytes, run->source_bytes,    run->stride_bytes,
                      run->src_dtype,  cache->dtype,         run->factor_bits};
    int64_t n_fields = (int64_t)(sizeof task / sizeof task[0]);
    int64_t head[] = {RUN, n_fields + run->n_calls * n_tokens};
    int64_t end_ns = answer_end_ns();
    int64_t ns = 0;

    bool sent = bench_peers_has(peers, run->peer) && send_numbers(peers, head, 2, end_ns) &&
                send_numbers(peers, task, n_fields, end_ns);
    for (int64_t call = 0; call < run->n_calls && sent; call++) {
        sent = send_numbers(peers, run->steps[call].slots, n_tokens, end_ns);
    }
    return sent && receive(peers, 1, patience_ns, end_ns, &ns) ? (double)ns : 0;
}

int64_t bench_peers_check(bench_peers *peers)
{
    int64_t request[] = {CHECK, 0};
    int64_t end_ns = answer_end_ns();
    int64_t slot = -1;

    if (peers->pid <= 0 || !send_numbers(peers, request, 2, end_ns) ||
        !receive(peers, -1, INT32_MAX, end_ns, &slot)) {
        return -1;
    }
    return slot;
}
