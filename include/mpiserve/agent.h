/* agent: a rank of the job. The default command of the program: `mpiserve [MODEL] [options]` under mpirun, or alone as a job of one
 * rank. It wires the rooms below it: messages (wire), slots, the replica's scheduler (batch), its engine (proc), and on rank 0 the HTTP
 * side (ingress) with the router (route).
 *
 * Start: options and model are read -> MPI -> all ranks agree on build, options, model -> placement -> engine started -> slot
 * window -> rank 0 opens the port -> loop. Errors before MPI are printed by the first rank only; later ones by the rank they belong to.
 * The loop's thread is the only one that calls MPI. End: SIGUSR1 drains (exit 0), SIGINT and SIGTERM end at once, with a final error chunk on every
 * open stream.
 *
 * Files of a job in its folder (0700): endpoint.json, key (the header line for curl -H @key, 0600), pids ("rank pid host" lines), bells. */
#ifndef MPISERVE_AGENT_H
#define MPISERVE_AGENT_H

/* Returns the exit status: 0 after a drain, 1 for what went wrong at run time, 2 for wrong options. */
int agent_main(int argc, char **argv);

#endif
