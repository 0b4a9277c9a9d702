"""`python -m sampleattn bench`: what each part of the method costs, next to its rivals, on inputs of known structure.

command     the command: what is timed, the CSV file, the tables
measure     cases -> rows of the CSV file
cases       what is timed: calls, with their operations and bytes
feeds       the inputs: planted, recorded or random
rivals      dense and block-sparse attention of others
timing      medians of calls, one by one or as a CUDA graph
check       no speed is reported of an operator that is wrong
bars        what is wanted of the rows, and what they reach; torch-free
prefill     time to first token of a Llama-shaped model
rows        its rows as values, and in words; torch-free
report      the CSV file and the table of text; torch-free
readme      the table in README.md; torch-free
"""
