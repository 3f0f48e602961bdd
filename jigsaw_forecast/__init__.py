"""WeatherMixer forecasts and training, cut over a group of ranks with Jigsaw parallelism."""

__version__ = "0.1.0"
