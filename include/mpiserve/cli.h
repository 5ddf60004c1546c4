/* cli: the subcommands of the program that are no part of a running job.
 *
 * Each gets the process's argc and argv unchanged (argv[1] is the subcommand) and returns the exit status. Messages
 * for people go to stderr, results to stdout. */
#ifndef MPISERVE_CLI_H
#define MPISERVE_CLI_H

/* mpiserve up [-n RANKS] [MODEL] [options] [-- arguments for mpirun]: starts the job under mpirun, says when it is ready, drains it on INT or
 * TERM, ends what is left of it, and removes what it left behind. 0 after a clean drain; 130 when it was ended before it was
 * ready; 2 when the options are wrong, 1 on other failures. */
int cli_up(int argc, char **argv);

#endif
