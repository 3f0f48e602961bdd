"""WeatherMixer and its presets."""
