// SIGTERM, SIGINT and SIGUSR1 (what Slurm sends before its limit) ask the run to stop at the next step.
#pragma once

namespace tessera {

void install_stop_signals();
bool stop_signalled();

}  // namespace tessera
