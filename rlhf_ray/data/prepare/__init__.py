"""The data stage: from files in many layouts to cleaned, blended, split sets in one."""
