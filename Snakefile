# The door: the workflow itself is in workflow/Snakefile. An include sets no default target.
include: "workflow/Snakefile"


rule default:
    default_target: True
    input:
        rules.all.input,
