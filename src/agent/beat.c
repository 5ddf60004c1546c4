/* A node that rank 0 does not reach any more ends itself. The launcher does that as a rule, within seconds; but when something that it has
 * sent waits for an answer as the cable is cut, the kernel does not probe its connection and goes on trying for a quarter of an hour,
 * and so long its daemon, the ranks and the engines of the cut node would stay. So rank 0 says every few seconds that it is there
 * (BEAT), to the first rank of every other node; one that has not heard it for much longer than rank 0 can stand still (WATCHDOG_S)
 * ends all of its node. */
#include "agent/agent_internal.h"
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { BEAT_S = 4, SILENT_S = BEAT_S + 2 * WATCHDOG_S, TURNS_S = 2 };

/* The launcher's daemon of this node, when it is our parent: it would wait for orders that cannot come. */
static pid_t daemon_of_launcher(void)
{
    char path[40], name[32] = "";
    snprintf(path, sizeof path, "/proc/%d/comm", (int)getppid());
    FILE *f = fopen(path, "re");
    if (f && !fgets(name, sizeof name, f)) name[0] = 0;
    if (f) fclose(f);
    name[strcspn(name, "\n")] = 0;
    return strcmp(name, "orted") == 0 || strcmp(name, "prted") == 0 ? getppid() : -1;
}

_Noreturn static void end_node(struct agent *a, u64 silent_ns)
{
    log_error("rank 0 on %s has not been heard of for %llu s: the network is cut or its node is gone; this "
              "node's part of the job ends",
              wire_peers(a->wire)[0].host, (unsigned long long)(silent_ns / NS_PER_S));
    pid_t launcher = daemon_of_launcher();
    agent_kill_engine(a);
    for (u32 i = 1; i < wire_node_size(a->wire); i++)
        kill(wire_peers(a->wire)[wire_node_ranks(a->wire)[i]].pid, SIGKILL);
    if (launcher > 1) kill(launcher, SIGKILL);
    _exit(1);
}

void beat_heard(struct agent *a)
{
    a->beat_ns = clock_ns();
}

/* A rank that stood still itself has not heard what came meanwhile: it looks again when it has turned for a while. */
static bool listens(struct agent *a, u64 now)
{
    if (now > a->turned_ns + NS_PER_S) a->listening_ns = now;
    a->turned_ns = now;
    return now > a->listening_ns + TURNS_S * NS_PER_S;
}

void beat_turn(struct agent *a, u64 now)
{
    if (wire_n_nodes(a->wire) == 1) return;
    if (agent_rank(a) == 0) {
        if (now < a->beat_ns + BEAT_S * NS_PER_S) return;
        a->beat_ns = now;
        for (u32 n = 1; n < wire_n_nodes(a->wire); n++)
            agent_send(a, wire_first_rank(a->wire, n), MSG_BEAT, NULL, 0, NULL, 0);
        return;
    }
    if (wire_same_node(a->wire, 0) || wire_node_ranks(a->wire)[0] != agent_rank(a)) return;
    if (!a->beat_ns) a->beat_ns = now;
    if (listens(a, now) && now > a->beat_ns + SILENT_S * NS_PER_S) end_node(a, now - a->beat_ns);
}
