"""The engine: many requests share each pass of a target model."""
