"""From a configuration to run directories: specs, single runs, sweeps and the engines that execute them."""
